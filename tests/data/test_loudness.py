"""Loudness as the standard's own test signals have it, and songs brought to one level."""

import math

import pytest
import torch

from woodshed.data.loudness import CHUNK, LOUDNESS, PEAK, integrated_loudness, normalized


def sine(level, *, hertz=997, seconds=3.0, channels=(1, 1)):
    """(2, S): a sine of a level in dBFS on the channels that are one."""
    wave = 10 ** (level / 20) * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * 48_000)) / 48_000)
    return torch.stack([wave * channel for channel in channels])


@pytest.mark.parametrize(
    ("sound", "loudness"),
    [
        (sine(0, channels=(1, 0)), -3.01),  # BS.1770-4: 997 Hz at full scale in one channel
        (sine(-23, hertz=1000), -23.0),  # EBU Tech 3341, case 1
        (sine(-33, hertz=1000), -33.0),  # EBU Tech 3341, case 2
        (torch.cat([sine(-36, seconds=10), sine(-23, seconds=60), sine(-36, seconds=10)], 1), -23.0),  # case 3
        (sine(-23, seconds=0.05), -23.0),  # shorter than a block
    ],
)
def test_loudness_is_that_of_the_standard(sound, loudness):
    assert integrated_loudness(sound) == pytest.approx(loudness, abs=0.1)


def test_a_long_song_measures_the_same_in_pieces_as_at_once(monkeypatch):
    noise = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(1)) * 0.1
    assert noise.shape[1] < CHUNK
    whole = integrated_loudness(noise)
    monkeypatch.setattr("woodshed.data.loudness.CHUNK", 30_000)
    assert integrated_loudness(noise) == pytest.approx(whole, abs=1e-6)


def test_songs_are_brought_to_the_target():
    quiet = sine(-40)
    assert integrated_loudness(normalized(quiet, "loudness")) == pytest.approx(LOUDNESS, abs=0.01)
    assert normalized(quiet, "peak").abs().max() == pytest.approx(PEAK)
    assert normalized(quiet, "none") is quiet


def test_nothing_is_pushed_above_the_peak_and_silence_stays_silence():
    clicks = torch.zeros(2, 96_000)
    clicks[:, ::9_600] = 0.5
    assert normalized(clicks, "loudness").abs().max() == pytest.approx(PEAK)
    silence = torch.zeros(2, 4_800)
    for how in ("none", "peak", "loudness"):
        assert torch.equal(normalized(silence, how), silence)
