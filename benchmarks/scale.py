"""Does a start, or its memory, grow with the number of songs? Are songs in memory faster than workers?

    python benchmarks/scale.py --folder DIR --songs 100000

The songs are hard links to a few files, each under a name of its own, as preprocessing writes them; the index that a
training holds is the same as for real ones. Each row is a process of its own, so that memory starts anew.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from woodshed.data.batches import BatchLoader
from woodshed.data.dataset import SongDataset, open_dataset
from woodshed.data.manifest import MANIFEST, OUR_RECORD

FINGERPRINT = "f" * 64
FRAMES, CHANNELS, TOKENS, WIDTH = 6000, 64, 512, 2048
DIFFERENT = 8


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def build(folder: Path, songs: int, frames: int) -> None:
    """Write a dataset of many songs that takes the room of a few."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    names = [f"song number {number:06d} of a long list-{number:08x}.pt" for number in range(songs)]
    for name in names[:DIFFERENT]:
        latents = torch.randn(frames, CHANNELS, generator=generator).bfloat16()
        content = {
            "target_latents": latents,
            "attention_mask": torch.ones(frames),
            "encoder_hidden_states": torch.randn(TOKENS, WIDTH, generator=generator).bfloat16(),
            "encoder_attention_mask": torch.ones(TOKENS, dtype=torch.bool),
            "context_latents": torch.cat([latents, torch.ones_like(latents)], dim=1),
            "metadata": {OUR_RECORD: {"model": "acestep-v15-base", "fingerprint": FINGERPRINT}},
        }
        torch.save(content, folder / name)
    for number, name in enumerate(names[DIFFERENT:]):
        os.link(folder / names[number % DIFFERENT], folder / name)
    ours = {"model": "acestep-v15-base", "fingerprint": FINGERPRINT, "conditioning": "inference", "is_complete": True}
    manifest = {"metadata": {}, "samples": names, "num_samples": songs, OUR_RECORD: ours}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def open_it(folder: Path) -> SongDataset:
    """Open the dataset as a training does."""
    return open_dataset(
        folder, latent_channels=CHANNELS, condition_width=WIDTH, fingerprint=FINGERPRINT, model="acestep-v15-base"
    )


def loader_of(dataset: SongDataset, keep: str, workers: int) -> BatchLoader:
    """Return a loader with the settings of a training."""
    return BatchLoader(
        dataset,
        batch_size=1,
        seed=42,
        num_workers=workers,
        pin_memory=False,
        prefetch_factor=2,
        persistent_workers=True,
        keep_in_memory=keep,  # type: ignore[arg-type]
        device=torch.device("cpu"),
    )


def megabytes() -> float:
    """Return the most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start(folder: Path) -> None:
    """Measure what a training does until its first batch."""
    before, started_at = megabytes(), time.monotonic()
    dataset = open_it(folder)
    opened, index = time.monotonic() - started_at, megabytes() - before
    loader = loader_of(dataset, "no", 0)
    batches = loader.epoch(1)
    next(batches)
    first = time.monotonic() - started_at
    said = {"songs": len(dataset), "open_s": opened, "first_batch_s": first, "index_mb": index}
    said["peak_mb"] = megabytes() - before
    say(json.dumps({key: round(value, 3) for key, value in said.items()}))


def pace(folder: Path, keep: str, workers: int) -> None:
    """Measure how many songs a second come out of an epoch that is not the first."""
    loader = loader_of(open_it(folder), keep, workers)
    list(loader.epoch(1))
    started_at = time.monotonic()
    songs = sum(len(batch.names) for batch in loader.epoch(2))
    seconds = time.monotonic() - started_at
    loader.close()
    say(json.dumps({"keep": keep, "workers": workers, "songs_per_s": round(songs / seconds, 1)}))


def main() -> None:
    """Build, then measure in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--songs", type=int, default=100_000)
    parser.add_argument("--step", nargs="+", help="what a process of its own does")
    chosen = parser.parse_args()
    if chosen.step:
        what, *more = chosen.step
        start(chosen.folder) if what == "start" else pace(chosen.folder, more[0], int(more[1]))
        return
    again = [sys.executable, __file__, "--folder"]
    for songs in (100, chosen.songs // 10, chosen.songs):
        folder = chosen.folder / f"songs-{songs}"
        build(folder, songs, frames=100)
        for _ in range(2):
            subprocess.run([*again, str(folder), "--step", "start"], check=True)
        shutil.rmtree(folder)
    folder = chosen.folder / "small"
    build(folder, 64, FRAMES)
    for keep, workers in (("yes", 0), ("no", 0), ("no", 2), ("no", 4)):
        subprocess.run([*again, str(folder), "--step", "pace", keep, str(workers)], check=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
