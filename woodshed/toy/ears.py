"""Ears that tell of a sound which instrument plays, how fast, and in which key.

Each is a nearest-centroid classifier: it knows the mean features of the generator's own songs, and nothing of models.

Shapes: S samples, F frames of 10 ms, M mel bands.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from woodshed.toy.composer import SAMPLE_RATE, Piece, compose, render
from woodshed.toy.instruments import INSTRUMENTS, NEW, Sound

Vector = NDArray[np.float64]
Features = Callable[[Sound], Vector]

HOP = 480
SHORT, LONG = 2048, 8192  # samples in a window: to tell when, or to tell how high
BANDS = 40
LOWEST, HIGHEST = 40.0, 12_000.0
FLOOR = 0.06  # of a band, relative to the loudest of the song: what is 24 dB softer is not heard
LAGS = slice(8, 110)  # in frames: from 80 ms, shorter than any note, to more than the slowest beat
SHRINKAGE = 0.2  # how far correlations between features are believed less than they were seen
EAR_SEED = 7_000_000  # of the first song that ears learn from, far from those that any model is trained on


def magnitudes(sound: Sound, window: int, hop: int = HOP) -> NDArray[np.float64]:
    """Return the (F, window / 2 + 1) spectra of a (2, S) sound at 48 kHz, both channels as one."""
    mono = np.pad(np.asarray(sound, dtype=np.float64).mean(axis=0), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(mono, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window), axis=1))


@cache
def _mel_bands() -> NDArray[np.float64]:
    """Return (SHORT / 2 + 1, M) triangles, evenly spaced on the mel scale."""

    def mel(hertz: float) -> float:
        return float(2595 * np.log10(1 + hertz / 700))

    edges = 700 * (10 ** (np.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2) / 2595) - 1)
    hertz = np.arange(SHORT // 2 + 1)[:, None] * SAMPLE_RATE / SHORT
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle))
    return np.maximum(triangles, 0)


def log_mel(sound: Sound) -> NDArray[np.float64]:
    """Return (F, M) decibels below the loudest; silence is at the floor."""
    bands = magnitudes(sound, SHORT) @ _mel_bands()
    loudest = max(float(bands.max()), 1e-9)
    return 20 * np.log10(np.maximum(bands / loudest, FLOOR))


def timbre(sound: Sound) -> Vector:
    """Return what an instrument sounds like: mean and spread of each band, and how fast it moves."""
    bands = log_mel(sound)
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0), np.abs(np.diff(bands, axis=0)).mean(axis=0)])


def pulse(sound: Sound) -> Vector:
    """Return after which lags the beginnings of notes repeat: the autocorrelation of rising loudness."""
    rising = np.maximum(np.diff(log_mel(sound), axis=0), 0).sum(axis=1)
    rising = rising - rising.mean()
    full = np.correlate(rising, rising, "full")[len(rising) - 1 :]
    return np.asarray(full[LAGS] / max(float(full[0]), 1e-9))


def chroma(sound: Sound) -> Vector:
    """Return how strong each of the twelve pitch classes is, as a unit vector."""
    spectra = magnitudes(sound, LONG, LONG // 2).mean(axis=0)
    hertz = np.arange(1, len(spectra)) * SAMPLE_RATE / LONG
    heard = (hertz > 90) & (hertz < 620)
    classes = np.round(12 * np.log2(hertz[heard] / 261.63)).astype(int) % 12
    strength = np.bincount(classes, weights=spectra[1:][heard] ** 2, minlength=12) ** 0.5
    return np.asarray(strength / max(float(np.linalg.norm(strength)), 1e-9))


@dataclass(frozen=True)
class Example:
    """A song whose label is known; songs of one variant share a centroid."""

    label: str
    variant: str
    sound: Sound


class Ear:
    """Names what it hears by the nearest of the centroids it has learned.

    Distances are measured in units of the features' spread about their centroids, correlations taken into account.

    Args:
        features: of a sound.
        examples: several of each label and variant.
    """

    def __init__(self, features: Features, examples: Iterable[Example]) -> None:
        self._features = features
        known: dict[tuple[str, str], list[Vector]] = {}
        for example in examples:
            known.setdefault((example.label, example.variant), []).append(features(example.sound))
        self._labels = [label for label, _ in known]
        self._centroids = np.stack([np.mean(vectors, axis=0) for vectors in known.values()])
        centred = [np.stack(vectors) - np.mean(vectors, axis=0) for vectors in known.values()]
        self._whiten = _whitening(np.concatenate(centred))

    def distances(self, sound: Sound) -> dict[str, float]:
        """Return how far a sound lies from the nearest centroid of each label."""
        away = (self._features(sound) - self._centroids) @ self._whiten
        found: dict[str, float] = {}
        for label, distance in zip(self._labels, np.linalg.norm(away, axis=1), strict=True):
            found[label] = min(float(distance), found.get(label, np.inf))
        return found

    def name(self, sound: Sound) -> str:
        """Return the label of the nearest centroid."""
        distances = self.distances(sound)
        return min(distances, key=lambda label: distances[label])


def _whitening(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix after which (examples, features) about their centroids are uncorrelated and of unit size."""
    spread = centred.std(axis=0)
    spread = spread + 0.05 * spread.mean()
    scaled = centred / spread
    correlations = (1 - SHRINKAGE) * scaled.T @ scaled / len(scaled) + SHRINKAGE * np.eye(scaled.shape[1])
    return np.asarray(np.linalg.cholesky(np.linalg.inv(correlations)) / spread[:, None])


def plain_songs(instruments: Sequence[str], first_seed: int, count: int) -> Iterator[Piece]:
    """Yield pieces that are a melody throughout, each instrument in turn."""
    seeds, found = itertools.count(first_seed), 0
    while found < count:
        piece = compose(next(seeds), (instruments[found % len(instruments)],))
        if piece.form == "melody":
            found += 1
            yield piece


@cache
def instrument_ear() -> Ear:
    """Return an ear for instruments, the new one among them."""
    names = (*INSTRUMENTS, NEW)
    songs = plain_songs(names, EAR_SEED, 16 * len(names))
    return Ear(timbre, (Example(song.instrument, str(song.has_chords), render(song)) for song in songs))


@cache
def tempo_ear() -> Ear:
    """Return an ear for beats a minute."""
    songs = plain_songs(tuple(INSTRUMENTS), EAR_SEED, 112)
    return Ear(pulse, (Example(str(song.bpm), "", render(song)) for song in songs))


@cache
def key_ear() -> Ear:
    """Return an ear for keys, of songs with chords."""
    names = tuple(name for name in INSTRUMENTS if name != "drum kit")
    songs = (song for song in plain_songs(names, EAR_SEED, 240) if song.has_chords)
    return Ear(chroma, (Example(song.keyscale, "", render(song)) for song in songs))
