"""Spectrograms as PNG files, without a plotting library."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from woodshed.storage import whole_file
from woodshed.toy.composer import SAMPLE_RATE
from woodshed.toy.instruments import Sound

WINDOW, HOP = 2048, 480
LOWEST, HIGHEST = 60.0, 12_000.0
HEIGHT = 160  # pixels of a spectrogram
GAP = 4  # pixels between two
SOFTEST = -70.0  # dB below the loudest: black
COLOURS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], dtype=np.float64)
"""From soft to loud. Source: five of matplotlib's magma colours."""


def spectrogram(sound: Sound) -> NDArray[np.uint8]:
    """Draw a (2, samples) sound at 48 kHz as (HEIGHT, columns, 3): early is left, low is down, octaves are equal."""
    mono = np.pad(np.asarray(sound, dtype=np.float64).mean(axis=0), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(mono, WINDOW)[::HOP]
    sizes = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)).T
    hertz = np.geomspace(LOWEST, HIGHEST, HEIGHT)[::-1]
    rows = sizes[np.round(hertz * WINDOW / SAMPLE_RATE).astype(int)]
    decibels = 20 * np.log10(np.maximum(rows / max(float(rows.max()), 1e-9), 1e-9))
    return _coloured(np.clip(1 - decibels / SOFTEST, 0, 1))


def _coloured(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn values in [0, 1] into colours."""
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(values, places, COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def write_spectrograms(path: Path, sounds: Sequence[Sound]) -> None:
    """Write the spectrograms of sounds of one length, one below the other."""
    gap = np.full((GAP, spectrogram(sounds[0]).shape[1], 3), 255, dtype=np.uint8)
    rows = [row for sound in sounds for row in (spectrogram(sound), gap)]
    with whole_file(path) as building:
        building.write_bytes(encode_png(np.concatenate(rows[:-1])))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (height, width, 3) pixels as a PNG file.

    Source: PNG specification, https://www.w3.org/TR/png-3/.
    """
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # 0: unfiltered
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
