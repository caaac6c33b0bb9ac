"""Many songs, rendered by all processors into one file of 16-bit samples."""

import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from woodshed.toy.composer import SAMPLE_RATE, SECONDS, compose, render
from woodshed.toy.instruments import random_instrument

SAMPLES = round(SECONDS * SAMPLE_RATE)
MADE_UP_SEED = 5_000_000  # of the first song that a made-up instrument plays, for the VAE alone


class Songs:
    """Songs that appear in a file, in order, while other work goes on.

    Args:
        path: of the file.
        seeds: of the songs.
    """

    def __init__(self, path: Path, seeds: list[int]) -> None:
        self.seeds = seeds
        self.samples = np.memmap(path, dtype=np.int16, mode="w+", shape=(len(seeds), 2, SAMPLES))
        self._pool = multiprocessing.get_context("fork").Pool(max(1, (os.cpu_count() or 2) - 1))
        work = partial(_render_into, path, len(seeds))
        self._done = self._pool.imap(work, list(enumerate(seeds)), chunksize=16)
        self._ready = 0

    def wait_for(self, count: int) -> NDArray[np.int16]:
        """Return the first so many songs, once they are there."""
        while self._ready < count:
            next(self._done)
            self._ready += 1
        return self.samples[:count]

    def close(self) -> None:
        """End the processes."""
        self._pool.terminate()
        self._pool.join()


def _render_into(path: Path, count: int, task: tuple[int, int]) -> None:
    number, seed = task
    place = np.memmap(path, dtype=np.int16, mode="r+", shape=(count, 2, SAMPLES))
    place[number] = np.round(sound_of(seed) * 32_767).astype(np.int16)


def sound_of(seed: int) -> NDArray[np.floating]:
    """Return a song; from `MADE_UP_SEED` on it is played by an instrument that no caption names."""
    made_up = random_instrument(np.random.default_rng((seed, 2))) if seed >= MADE_UP_SEED else None
    return render(compose(seed), instrument=made_up)


def training_seeds(songs: int, made_up: int) -> list[int]:
    """Return seeds of songs, a share of made-up ones among the first so that the VAE meets both."""
    named, unnamed = iter(range(songs)), iter(range(MADE_UP_SEED, MADE_UP_SEED + made_up))
    return list(_interleaved(named, unnamed))


def _interleaved(named: Iterator[int], unnamed: Iterator[int]) -> Iterator[int]:
    for number, seed in enumerate(named):
        yield seed
        if number % 2:
            yield from (seed for seed in [next(unnamed, None)] if seed is not None)
