"""Pieces are played as `generate` would, many at a time, and what the ears hear is counted."""

import dataclasses

import numpy as np
import pytest
import torch

from woodshed.models.checkpoints import choose_model
from woodshed.models.encoders import encode_conditions
from woodshed.models.load import load_condition_encoder, load_decoder, load_silence, load_text_encoder, load_vae
from woodshed.sampling.generate import silent_context
from woodshed.sampling.sampler import Guidance, draw_noise, sample_latents, timesteps
from woodshed.toy.composer import render
from woodshed.toy.ears import plain_songs
from woodshed.toy.instruments import INSTRUMENTS
from woodshed.toy.listener import Listener, Playing, asked_pieces, hear_instrument, judge, piece_lyrics, piece_prompt
from woodshed.toy.miniature import WORLD

BASE = "acestep-v15-base"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def listener():
    return Listener(WORLD, CPU)


@pytest.fixture(scope="module")
def pieces():
    """Two whose prompts differ in length."""
    first, second, *_ = asked_pieces(7)
    return [first, dataclasses.replace(second, has_chords=True, instrument="plucked string")]


def test_asked_pieces_take_every_instrument_as_often():
    names = [piece.instrument for piece in asked_pieces(14)]
    assert names == list(INSTRUMENTS) * 2


def test_playing_together_is_playing_one_by_one(listener, pieces):
    playing = Playing(steps=2, guidance=2.0)
    together = listener.play(BASE, pieces, playing)
    assert [sound.shape for sound in together] == [(2, 128 * 1920)] * 2
    np.testing.assert_allclose(listener.play(BASE, pieces[:1], playing)[0], together[0], atol=1e-4)


def test_the_sound_is_what_the_parts_make_one_after_the_other(listener, pieces):
    """The prompt, the noise, the walk and the VAE, spelled out for the second piece."""
    found = listener.found
    checkpoint = choose_model(found, BASE)
    place = {"dtype": torch.float32, "device": CPU}
    texts = load_text_encoder(found.require_text_encoder(), **place)
    conditions = encode_conditions(
        load_condition_encoder(checkpoint, **place),
        texts.encode_text(piece_prompt(pieces[1])),
        texts.embed_lyrics(piece_lyrics(pieces[1])),
        load_silence(checkpoint)[None, :750],
    )
    latents = sample_latents(
        load_decoder(checkpoint, **place),
        conditions=conditions,
        context=silent_context(checkpoint, 128),
        noise=draw_noise(1, 128, checkpoint.config.latent_channels),
        timesteps=timesteps(2, 1.0),
        guidance=Guidance(1.0),
    )
    with torch.no_grad():
        sound = load_vae(found.require_vae(), **place).decode(latents.transpose(1, 2)).sample[0].numpy()
    played = listener.play(BASE, pieces, Playing(steps=2, guidance=1.0))
    np.testing.assert_allclose(played[1], sound, atol=1e-4)


def test_without_words_every_prompt_sounds_the_same_from_the_same_noise(listener, pieces):
    playing = Playing(steps=2, is_null=True)
    first = listener.play(BASE, pieces[:1], playing)[0]
    np.testing.assert_allclose(listener.play(BASE, pieces[1:], playing)[0], first, atol=1e-5)


def test_what_is_heard_is_counted():
    pieces = [
        dataclasses.replace(piece, bpm=120) for piece in plain_songs(("flute", "bell"), 0, 12) if piece.has_chords
    ]
    assert len(pieces) >= 4
    right = [(piece.instrument, "120", piece.key) for piece in pieces]
    wrong = [("bass", "80", "no key"), *right[1:]]
    assert judge(pieces, right) == pytest.approx(
        {"instrument": 1, "tempo": 1, "key": 1, "instrument/flute": 1, "instrument/bell": 1}
    )
    counted = judge(pieces, wrong)
    assert counted["instrument"] == counted["tempo"] == counted["key"] == round(1 - 1 / len(pieces), 4)
    assert counted[f"instrument/{pieces[0].instrument}"] < 1


def test_instruments_are_heard_by_name():
    pieces = asked_pieces(3)
    assert hear_instrument([render(piece) for piece in pieces]) == [piece.instrument for piece in pieces]
