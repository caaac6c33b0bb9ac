"""Listens to what a checkpoint root makes, loaded as users load it, and counts what the ears hear."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from miniature.words import piece_lyrics, piece_prompt
from woodshed.adapters.files import load_adapter
from woodshed.models.checkpoints import Checkpoint, CheckpointRoot, choose_model, find_checkpoints
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
from woodshed.toy.composer import Piece
from woodshed.toy.ears import instrument_ear, key_ear, plain_songs, tempo_ear
from woodshed.toy.instruments import INSTRUMENTS, Sound

FRAMES = 128
HELD_OUT_SEED = 9_000_000  # of the first piece that figures are made of


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
        self._place = {"dtype": torch.float32, "device": device}
        self._device = device
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
        sounds: dict[int, Sound] = {}
        for numbers in _of_equal_length(conditions):
            rows = torch.cat([conditions[number] for number in numbers])
            rows = null.expand_as(rows) if playing.is_null else rows
            latents = sample_latents(
                decoder,
                conditions=rows,
                context=silent_context(checkpoint, FRAMES).to(self._device).expand(len(rows), -1, -1),
                noise=torch.cat([draw_noise(number, FRAMES, rows_channels(checkpoint)) for number in numbers]).to(
                    self._device
                ),
                timesteps=steps,
                null_condition=null,
                guidance=Guidance(1.0 if playing.is_null else guidance),
            )
            for number, sound in zip(numbers, self._decode(latents), strict=True):
                sounds[number] = sound
        return [sounds[number] for number in range(len(pieces))]

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Iterator[Sound]:
        for row in latents:
            yield self._vae.decode(row.T[None]).sample[0].float().cpu().numpy()

    def _conditions(self, checkpoint: Checkpoint, pieces: Sequence[Piece]) -> list[Tensor]:
        encoder = load_condition_encoder(checkpoint, **self._place)
        reference = load_silence(checkpoint)[None, : checkpoint.config.timbre_fix_frame]
        return [
            encode_conditions(
                encoder,
                self._texts.encode_text(piece_prompt(piece)),
                self._texts.embed_lyrics(piece_lyrics(piece)),
                reference,
            )
            for piece in pieces
        ]


def rows_channels(checkpoint: Checkpoint) -> int:
    """Return C of a model."""
    return checkpoint.config.latent_channels


def _of_equal_length(conditions: Sequence[Tensor]) -> list[list[int]]:
    """Group conditions that fit into one batch; return their numbers."""
    groups = defaultdict(list)
    for number, rows in enumerate(conditions):
        groups[rows.shape[1]].append(number)
    return list(groups.values())


def judge(pieces: Sequence[Piece], sounds: Sequence[Sound]) -> dict[str, float]:
    """Return the shares in which the ears hear what was asked for, tempo and key where there are such."""
    ear, tempo, key = instrument_ear(), tempo_ear(), key_ear()
    heard = list(zip(pieces, sounds, strict=True))
    tonal = [pair for pair in heard if pair[0].has_chords and pair[0].instrument != "drum kit"]
    shares = {
        "instrument": _share([ear.name(sound) == piece.instrument for piece, sound in heard]),
        "tempo": _share([tempo.name(sound) == str(piece.bpm) for piece, sound in heard]),
        "key": _share([key.name(sound) == piece.keyscale for piece, sound in tonal]),
    }
    for name in dict.fromkeys(piece.instrument for piece in pieces):
        own = [ear.name(sound) == name for piece, sound in heard if piece.instrument == name]
        shares[f"instrument/{name}"] = _share(own)
    return shares


def _share(judgements: Sequence[bool]) -> float:
    return sum(judgements) / max(len(judgements), 1)


