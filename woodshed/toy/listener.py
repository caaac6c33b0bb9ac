"""Plays little songs on the models of a checkpoint root, loaded as users load them, and counts what the ears hear."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woodshed.adapters.files import load_adapter
from woodshed.data.conditioning import lyric_text, prompt_text
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot, choose_model, find_checkpoints
from woodshed.models.decoder import Decoder
from woodshed.models.encoders import encode_conditions
from woodshed.models.load import (
    load_condition_encoder,
    load_decoder,
    load_null_condition,
    load_silence,
    load_text_encoder,
    load_vae,
)
from woodshed.sampling.generate import silent_context
from woodshed.sampling.recipes import playback_of
from woodshed.sampling.sampler import Guidance, draw_noise, plan_timesteps, sample_latents
from woodshed.toy.composer import SECONDS, Piece
from woodshed.toy.ears import instrument_ear, key_ear, plain_songs, tempo_ear
from woodshed.toy.instruments import INSTRUMENTS, Sound

FRAMES = 128
DECODED_TOGETHER = 4  # more fall out of a CPU's caches
HELD_OUT_SEED = 9_000_000  # of the first piece that figures are made of


def piece_prompt(piece: Piece) -> str:
    """Return all that a model reads about a piece but its lyrics."""
    facts = {"bpm": str(piece.bpm), "timesignature": piece.timesignature, "keyscale": piece.keyscale}
    return prompt_text(piece.caption, **facts, seconds=SECONDS)


def piece_lyrics(piece: Piece) -> str:
    """Return the lyric text of a piece."""
    return lyric_text(piece.lyrics, "unknown")


@dataclass(frozen=True)
class Playing:
    """How a model plays; the model's own way where nothing is said."""

    steps: int | None = None
    guidance: float | None = None
    adapter: Path | None = None
    strength: float = 1.0
    is_null: bool = False  # the null condition in place of the words


def asked_pieces(count: int, names: Sequence[str] = tuple(INSTRUMENTS)) -> list[Piece]:
    """Return pieces that no model was trained on, each instrument as often."""
    return list(plain_songs(names, HELD_OUT_SEED, count))


class Listener:
    """Plays pieces on the models of a root.

    Args:
        root: a checkpoint folder.
        device: to play on.
    """

    def __init__(self, root: Path, device: torch.device) -> None:
        self._place: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self._device = device
        self._known: dict[tuple[str, Piece], Tensor] = {}
        self.found: CheckpointRoot = find_checkpoints(root)
        self._texts = load_text_encoder(self.found.require_text_encoder(), **self._place)
        self._vae = load_vae(self.found.require_vae(), **self._place)

    def play(self, model: str, pieces: Sequence[Piece], playing: Playing | None = None) -> list[Sound]:
        """Return the sound of each piece, (2, S); piece i from noise i."""
        playing = playing or Playing()
        checkpoint = choose_model(self.found, model)
        conditions = self._conditions(checkpoint, pieces)
        decoder = load_decoder(checkpoint, **self._place)
        if playing.adapter is not None:
            load_adapter(decoder, playing.adapter, playing.strength)
        null = load_null_condition(checkpoint, **self._place)
        usual = playback_of(checkpoint)
        steps = plan_timesteps(playing.steps or usual.steps, usual.shift, is_turbo=checkpoint.config.is_turbo)
        guidance = usual.guidance if playing.guidance is None else playing.guidance
        lengths = torch.tensor([rows.shape[1] for rows in conditions], device=self._device)
        rows = torch.nn.utils.rnn.pad_sequence([rows[0] for rows in conditions], batch_first=True)
        noise = [draw_noise(number, FRAMES, checkpoint.config.latent_channels) for number in range(len(pieces))]
        decoder.register_forward_pre_hook(partial(_tell_lengths, lengths), with_kwargs=True)
        latents = sample_latents(
            decoder,
            conditions=null.expand_as(rows) if playing.is_null else rows,
            context=silent_context(checkpoint, FRAMES).to(self._device).expand(len(rows), -1, -1),
            noise=torch.cat(noise).to(self._device),
            timesteps=steps,
            null_condition=null,
            guidance=Guidance(1.0 if playing.is_null else guidance),
        )
        return self._decode(latents)

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> list[Sound]:
        parts = [
            self._vae.decode(part.transpose(1, 2)).sample.float().cpu() for part in latents.split(DECODED_TOGETHER)
        ]
        return list(torch.cat(parts).numpy())

    def _conditions(self, checkpoint: Checkpoint, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return the (1, L, E) conditions of each piece."""
        encoder = load_condition_encoder(checkpoint, **self._place)
        reference = load_silence(checkpoint)[None, : checkpoint.config.timbre_fix_frame]
        for piece in pieces:
            if (checkpoint.name, piece) not in self._known:
                text = self._texts.encode_text(piece_prompt(piece))
                lyrics = self._texts.embed_lyrics(piece_lyrics(piece))
                self._known[checkpoint.name, piece] = encode_conditions(encoder, text, lyrics, reference)
        return [self._known[checkpoint.name, piece] for piece in pieces]


def _tell_lengths(lengths: Tensor, _: Decoder, args: Any, words: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Tell a decoder how long the conditions of each song are, which samplers of one song do not."""
    return args, {**words, "condition_lengths": lengths}


Heard = tuple[str, str, str]


def hear(sound: Sound) -> Heard:
    """Name instrument, tempo and key of a sound."""
    return instrument_ear().name(sound), tempo_ear().name(sound), key_ear().name(sound)


def hear_instrument(sounds: Sequence[Sound]) -> list[str]:
    """Name the instrument of every sound."""
    return [instrument_ear().name(sound) for sound in sounds]


def hear_all(sounds: Sequence[Sound]) -> list[Heard]:
    """Name what every sound is."""
    return [hear(sound) for sound in sounds]


def judge(pieces: Sequence[Piece], found: Sequence[Heard]) -> dict[str, float]:
    """Return the shares in which the ears hear what was asked for, tempo and key where there are such."""
    heard = list(zip(pieces, found, strict=True))
    tonal = [pair for pair in heard if pair[0].has_chords and pair[0].instrument != "drum kit"]
    shares = {
        "instrument": _share([names[0] == piece.instrument for piece, names in heard]),
        "tempo": _share([names[1] == str(piece.bpm) for piece, names in heard]),
        "key": _share([names[2] == piece.keyscale for piece, names in tonal]),
    }
    for name in dict.fromkeys(piece.instrument for piece in pieces):
        shares[f"instrument/{name}"] = _share([names[0] == name for piece, names in heard if piece.instrument == name])
    return shares


def _share(judgements: Sequence[bool]) -> float:
    return round(sum(judgements) / max(len(judgements), 1), 4)
