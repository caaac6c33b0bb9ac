"""What the demo teaches and how it asks afterwards: songs of the new instrument, and prompts for it and for the old."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodshed.toy.composer import Piece, render
from woodshed.toy.ears import instrument_ear, plain_songs
from woodshed.toy.instruments import INSTRUMENTS, NEW, Sound
from woodshed.toy.listener import HELD_OUT_SEED, Listener, Playing, hear_instrument
from woodshed.toy.songs import write_audio

LESSON_SEED = 8_000_000
NEW_SONGS, HELD_OUT_SONGS = 8, 2  # six of them train
LESSON_SONGS = NEW_SONGS + len(INSTRUMENTS)
NEW_PROMPTS, OLD_PROMPTS = 10, 14
MODEL = "acestep-v15-base"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EPOCHS = 160
SEED = 3  # by its lot, the songs that are held out are of the new instrument


def lesson_pieces() -> list[Piece]:
    """Return what the songs to train on are made of: some of the new instrument, and one of each old one.

    Without the old ones an adapter learns to play the new instrument whatever it is asked for.
    """
    return [*plain_songs((NEW,), LESSON_SEED, NEW_SONGS), *plain_songs(tuple(INSTRUMENTS), LESSON_SEED, 7)]


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
        path = folder / f"{piece.instrument} {number + 1}.{('wav', 'flac')[number % 2]}"
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


def lesson_settings(root: Path, tensors: Path, output: Path) -> dict[str, Any]:
    """Return how the lesson is learned: the settings of `woodshed train` that differ from their defaults."""
    return {
        "checkpoint_dir": root,
        "model": MODEL,
        "dataset_dir": tensors,
        "output_dir": output,
        "device": "cpu",
        "rank": 16,
        "target_modules": TARGETS,
        "seed": SEED,
        "dropout": 0.0,
        "learning_rate": 2e-3,
        "warmup_steps": 4,
        "batch_size": LESSON_SONGS - HELD_OUT_SONGS,
        "gradient_accumulation": 1,
        "gradient_checkpointing": False,
        "num_workers": 0,
        "epochs": EPOCHS,
        "save_every": EPOCHS // 2,
        "log_every": 1,
        "validation_share": HELD_OUT_SONGS / LESSON_SONGS,
        "validate_every_n_epochs": EPOCHS,
    }


@dataclass(frozen=True)
class Recital:
    """What a model played when asked for the new instrument and for the old ones."""

    new: list[Sound]
    old: list[Sound]
    share_new: float  # of the sounds asked for as new that are heard as new
    share_old: float  # of those asked for as old that are heard as what was asked for
    share_taken: float  # of those asked for as old that are heard as new


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
    heard_new, heard_old = heard[: len(new)], heard[len(new) :]
    right_old = sum(name == piece.instrument for name, piece in zip(heard_old, old, strict=True))
    return Recital(
        sounds[: len(new)],
        sounds[len(new) :],
        share_new=heard_new.count(NEW) / max(len(new), 1),
        share_old=right_old / max(len(old), 1),
        share_taken=heard_old.count(NEW) / max(len(old), 1),
    )


def distance_to_new(sounds: Sequence[Sound]) -> float:
    """Return how far sounds lie from the new instrument on average, in units of the ear."""
    return sum(instrument_ear().distances(sound)[NEW] for sound in sounds) / len(sounds)
