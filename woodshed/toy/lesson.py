"""What the demo teaches and how it asks afterwards: songs of the new instrument, and prompts for it and for the old."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from woodshed.toy.composer import Piece, render
from woodshed.toy.ears import plain_songs
from woodshed.toy.instruments import INSTRUMENTS, NEW, Sound
from woodshed.toy.listener import HELD_OUT_SEED, Listener, Playing, hear_instrument
from woodshed.toy.songs import write_audio

LESSON_SEED = 8_000_000
LESSON_SONGS = 8  # of which two are held out of training
NEW_PROMPTS, OLD_PROMPTS = 10, 14


def lesson_pieces(count: int = LESSON_SONGS) -> list[Piece]:
    """Return what the songs to train on are made of."""
    return list(plain_songs((NEW,), LESSON_SEED, count))


def write_lesson(folder: Path, pieces: Sequence[Piece] | None = None, captions: Sequence[str] | None = None) -> Path:
    """Write songs and an ACE-Step dataset JSON that describes them; return the JSON.

    Args:
        folder: created.
        pieces: the songs; those of the demo unless given.
        captions: in place of those that tell the truth.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = lesson_pieces() if pieces is None else pieces
    samples = []
    for number, piece in enumerate(pieces):
        path = folder / f"run {number + 1}.{('wav', 'flac')[number % 2]}"
        write_audio(path, render(piece), sample_rate=48_000)
        samples.append(
            {
                "audio_path": path.name,
                "caption": piece.caption if captions is None else captions[number],
                "is_instrumental": True,
                "bpm": piece.bpm,
                "keyscale": piece.keyscale,
                "timesignature": piece.timesignature,
            }
        )
    dataset = folder / "dataset.json"
    dataset.write_text(json.dumps({"metadata": {"name": NEW}, "samples": samples}, indent=1), encoding="utf-8")
    return dataset


@dataclass(frozen=True)
class Recital:
    """What a model played when asked for the new instrument and for the old ones."""

    new: list[Sound]
    old: list[Sound]
    share_new: float  # of the sounds asked for as new that are heard as new
    share_old: float  # of those asked for as old that are heard as what was asked for


def prompts(new: int = NEW_PROMPTS, old: int = OLD_PROMPTS) -> tuple[list[Piece], list[Piece]]:
    """Return pieces to ask for, none of which was trained on: of the new instrument, and of each old one in turn."""
    return list(plain_songs((NEW,), HELD_OUT_SEED, new)), list(plain_songs(tuple(INSTRUMENTS), HELD_OUT_SEED, old))


def examine(
    listener: Listener, model: str, asked: tuple[Sequence[Piece], Sequence[Piece]], playing: Playing
) -> Recital:
    """Ask a model for both kinds of pieces, and hear what it plays."""
    new, old = asked
    sounds = listener.play(model, [*new, *old], playing)
    heard = hear_instrument(sounds)
    right_new = sum(name == NEW for name in heard[: len(new)])
    right_old = sum(name == piece.instrument for name, piece in zip(heard[len(new) :], old, strict=True))
    return Recital(sounds[: len(new)], sounds[len(new) :], right_new / max(len(new), 1), right_old / max(len(old), 1))
