"""What can be heard in a song without a model: level, clipping, and a fingerprint that survives another encoding.

Shapes: N songs, 16 bands of frequency, 64 pieces of time.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from woodshed.data.audio import SAMPLE_RATE, decode, probe
from woodshed.data.digests import file_digest

BANDS, PIECES = 16, 64
LOWEST, HIGHEST = 80.0, 8_000.0  # Hz: what any encoding keeps
RANGE = 50.0  # dB below the loudest band that still count
FULL_SCALE = 0.999
SAME_PICTURE, SAME_COURSE = 0.93, 0.75  # correlations from which two songs count as one; see docs/decisions/0007
COURSE = 1.0  # dB; below that a song does not change enough to compare how it changes
SAME_LENGTH = 1.05


@dataclass(frozen=True)
class Heard:
    """What listening to a song tells."""

    path: Path
    digest: str  # of the file
    seconds: float
    rate: int  # of the file
    channels: int
    peak: float  # 1 is full scale
    clipped: float  # share of the samples at full scale
    fingerprint: Tensor  # (16, 64) dB


def listen(path: Path) -> Heard:
    """Hear a whole song.

    Raises:
        DataError: when it cannot be decoded.
        OSError: when it cannot be read.
    """
    digest, facts, sound = file_digest(path), probe(path), decode(path)
    level = sound.abs()
    clipped = float((level >= FULL_SCALE).float().mean())
    seconds = sound.shape[1] / SAMPLE_RATE
    return Heard(path, digest, seconds, facts.rate, facts.channels, float(level.max()), clipped, fingerprint(sound))


def fingerprint(sound: Tensor) -> Tensor:
    """Return the level in each band and piece of time, relative to the loudest: (16, 64) in dB, (2, S) given."""
    mono = sound.mean(0)
    width = 4096
    mono = F.pad(mono, (0, max(0, width - len(mono))))
    hop = max(256, min(width, len(mono) // (2 * PIECES)))
    spectrum = torch.stft(mono, width, hop, window=torch.hann_window(width), return_complex=True).abs() ** 2
    edges = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), BANDS + 1)
    bins = (edges / SAMPLE_RATE * width).round().long()
    bands = torch.stack([spectrum[low : max(high, low + 1)].sum(0) for low, high in itertools.pairwise(bins.tolist())])
    power = F.adaptive_avg_pool1d(bands[None], PIECES)[0]
    floor = float(power.max()) * 10 ** (-RANGE / 10) + 1e-20
    return 10 * power.clamp(min=floor).log10()


def alike(songs: Sequence[Heard]) -> list[tuple[Heard, Heard]]:
    """Return the pairs that sound the same though their files differ.

    Two songs are alike when they are of about the same length, have the same picture of level over time and frequency,
    and change in the same way; loudness and encoding do not matter.
    """
    ordered = sorted((song for song in songs if song.peak > 0), key=lambda song: song.seconds)
    if len(ordered) < 2:
        return []
    pictures = torch.stack([song.fingerprint for song in ordered])
    courses = pictures - pictures.mean(2, keepdim=True) - pictures.mean(1, keepdim=True)
    courses = courses + pictures.mean((1, 2), keepdim=True)
    moves = courses.flatten(1).std(1) > COURSE
    whole, course = _unit(pictures), _unit(courses)
    pairs = []
    for place, song in enumerate(ordered):
        end = place + 1
        while end < len(ordered) and ordered[end].seconds <= song.seconds * SAME_LENGTH:
            end += 1
        others = slice(place + 1, end)
        is_same = whole[others] @ whole[place] > SAME_PICTURE
        is_same &= (course[others] @ course[place] > SAME_COURSE) | ~(moves[others] & moves[place])
        near = (ordered[place + 1 + index] for index in is_same.nonzero().flatten().tolist())
        pairs += [(song, other) for other in near if other.digest != song.digest]
    return pairs


def _unit(pictures: Tensor) -> Tensor:
    """Return each picture without its mean and of length one, so that a product is a correlation."""
    flat = pictures.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)
