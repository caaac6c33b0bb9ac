"""How loud a song is, and how to bring all songs to one level.

Source: ITU-R BS.1770-4: K-weighting, blocks of 400 ms that overlap by three quarters, gates at -70 LUFS and 10 LU below
the mean.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from woodshed.data.audio import SAMPLE_RATE

Normalize = Literal["none", "peak", "loudness"]
PEAK = 10 ** (-1 / 20)  # -1 dBFS
LOUDNESS = -14.0  # LUFS; what streaming services play at
SHELF = ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585))
HIGH_PASS = ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621))
"""The two filters at 48 kHz: numerator and denominator."""
TAIL = 16_384  # samples after which the filters have forgotten everything
CHUNK = 2**20
STEP = SAMPLE_RATE // 10  # blocks are four steps long


def normalized(sound: Tensor, how: Normalize) -> Tensor:
    """Return a (2, S) sound at its target level, never above -1 dBFS; silence stays as it is.

    `peak` brings the highest sample to -1 dBFS; `loudness` multiplies by 10^((-14 - L) / 20), L being the integrated
    loudness, or by less where a sample would exceed -1 dBFS.
    """
    peak = float(sound.abs().max())
    if how == "none" or peak == 0:
        return sound
    gain = PEAK / peak
    if how == "loudness":
        gain = min(gain, 10 ** ((LOUDNESS - integrated_loudness(sound)) / 20))
    return sound * gain


def integrated_loudness(sound: Tensor) -> float:
    """Return the loudness of a (2, S) sound in LUFS; of one that is below the gate throughout, without the gate."""
    steps = _step_powers(sound)
    blocks = steps.unfold(0, 4, 1).mean(1) if len(steps) >= 4 else steps.mean(0, keepdim=True)
    loud = blocks[blocks > _power(-70.0)]
    loud = loud if len(loud) else blocks
    above = loud[loud > loud.mean() * 10 ** (-10 / 10)]
    return -0.691 + 10 * math.log10(float(above.mean()) + 1e-20)


def _power(loudness: float) -> float:
    return float(10 ** ((loudness + 0.691) / 10))


def _step_powers(sound: Tensor) -> Tensor:
    """Return the mean square of the weighted sound, both channels added, in every whole 100 ms."""
    powers = []
    for start in range(0, sound.shape[1], CHUNK):
        before = min(start, TAIL)
        piece = sound[:, start - before : start + CHUNK].double()
        powers.append(_weighted(piece)[:, before:].square().sum(0))
    power = torch.cat(powers)
    whole = len(power) // STEP * STEP
    return power[:whole].view(-1, STEP).mean(1) if whole else power.mean(0, keepdim=True)


def _weighted(piece: Tensor) -> Tensor:
    """Apply both filters to (2, S), by their frequency response; the padding is longer than they ring."""
    size = piece.shape[1] + TAIL
    turn = torch.exp(-2j * math.pi * torch.arange(size // 2 + 1, dtype=torch.float64) / size)
    response = torch.ones_like(turn)
    for above, below in (SHELF, HIGH_PASS):
        response = response * _polynomial(above, turn) / _polynomial(below, turn)
    weighted: Tensor = torch.fft.irfft(torch.fft.rfft(piece, size) * response, size)
    return weighted[:, : piece.shape[1]]


def _polynomial(coefficients: tuple[float, float, float], turn: Tensor) -> Tensor:
    first, second, third = coefficients
    return first + second * turn + third * turn**2
