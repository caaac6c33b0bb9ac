"""Many prompts at once are what preprocessing makes of each, up to the conditions that the decoder reads."""

import numpy as np
import pytest
import torch

from miniature.model import Model, write_model
from miniature.words import encode_words, incomplete_prompt, train_tokenizer, write_text_encoder
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.encoders import encode_conditions
from woodshed.models.load import load_condition_encoder, load_decoder, load_null_condition, load_text_encoder
from woodshed.toy.composer import compose
from woodshed.toy.instruments import INSTRUMENTS
from woodshed.toy.listener import piece_lyrics, piece_prompt

PLACE = {"dtype": torch.float32, "device": "cpu"}
PIECES = [compose(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_text_encoder(folder)
    return load_text_encoder(folder, **PLACE)


@pytest.fixture(scope="module")
def words(texts):
    return encode_words(texts, [piece_prompt(piece) for piece in PIECES], [piece_lyrics(piece) for piece in PIECES])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model("base")


def test_prompts_and_lyrics_are_those_of_the_text_encoder(texts, words):
    for number, piece in enumerate(PIECES):
        alone = texts.encode_text(piece_prompt(piece))[0]
        length = int(words.text_lengths[number])
        assert length == len(alone)
        torch.testing.assert_close(words.text[number, :length], alone, atol=1e-5, rtol=1e-4)
        kind = int(words.lyrics_of[number])
        lyrics = texts.embed_lyrics(piece_lyrics(piece))[0]
        torch.testing.assert_close(words.lyrics[kind, : int(words.lyric_lengths[kind])], lyrics)
    assert len(set(words.text_lengths.tolist())) > 1
    assert len(set(words.lyrics_of.tolist())) > 1


def test_conditions_of_many_are_those_of_each(texts, words, model):
    silence = torch.randn(750, 32, generator=torch.Generator().manual_seed(0))
    model.listen_to(silence)
    with torch.no_grad():
        rows, lengths = model.conditions(words, torch.arange(len(PIECES)))
    model.encoder.timbre_encoder.unpack_timbre_embeddings = type(model.encoder.timbre_encoder).unpack_timbre_embeddings
    for number, piece in enumerate(PIECES):
        text, lyrics = texts.encode_text(piece_prompt(piece)), texts.embed_lyrics(piece_lyrics(piece))
        alone = encode_conditions(model.encoder, text, lyrics, silence[None])[0]
        assert int(lengths[number]) == len(alone)
        torch.testing.assert_close(rows[number, : len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_written_models_are_read_back_in_bf16(model, tmp_path):
    write_model(tmp_path / "acestep-v15-base", model, "base", torch.zeros(1, 32, 750))
    checkpoint = choose_model(find_checkpoints(tmp_path), "acestep-v15-base")
    for module, loaded in [
        (model.decoder, load_decoder(checkpoint, **PLACE)),
        (model.encoder, load_condition_encoder(checkpoint, **PLACE)),
    ]:
        for name, value in module.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value.bfloat16().float())
    null = load_null_condition(checkpoint, **PLACE)
    torch.testing.assert_close(null, model.encoder.null_condition_emb.bfloat16().float())


def test_the_tokenizer_knows_the_instruments_and_spells_the_rest():
    tokenizer = train_tokenizer()
    for name in INSTRUMENTS:
        for word in name.split():
            assert len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1, word
    assert len(tokenizer.encode(" mandolin", add_special_tokens=False).ids) > 1
    text = "Größe 音楽, a flute"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_some_prompts_lack_some_metadata():
    random = np.random.default_rng(0)
    prompts = [incomplete_prompt(PIECES[0], random) for _ in range(40)]
    assert all(PIECES[0].caption in prompt for prompt in prompts)
    assert 5 < sum("N/A" in prompt for prompt in prompts) < 25
