"""Sound that tests can recognise, in every format; songs that need no model; the toy models."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

CODECS = {
    ".wav": "pcm_s16le",
    ".mp3": "libmp3lame",
    ".flac": "flac",
    ".ogg": "vorbis",
    ".opus": "libopus",
    ".m4a": "aac",
}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def _tones(seconds: float, rate: int = 48_000, channels: int = 2, amplitude: float = 0.5) -> np.ndarray:
    """(channels, samples): channel 0 plays 440 Hz, channel 1 880 Hz, and so on."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([amplitude * np.sin(2 * np.pi * 440 * (index + 1) * time) for index in range(channels)])


@pytest.fixture(scope="session")
def tones() -> Callable[..., np.ndarray]:
    return _tones


@pytest.fixture(scope="session")
def write_audio() -> Callable[..., Path]:
    """Encode (channels, samples) with FFmpeg: `write_audio(path, wave, rate)`; two seconds of tones by default."""

    def write(path: Path, wave: np.ndarray | None = None, rate: int = 48_000, codec: str | None = None) -> Path:
        wave = _tones(2, rate) if wave is None else wave
        layout = LAYOUTS[len(wave)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                codec or CODECS[path.suffix], rate=rate, layout=layout, options={"strict": "experimental"}
            )
            packed = np.ascontiguousarray(wave.T, np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            resampler = av.AudioResampler(
                format=stream.format.name, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or None
            )
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def pitch() -> Callable[[torch.Tensor], float]:
    """The loudest frequency of a channel at 48 kHz, in Hz."""

    def measure(channel: torch.Tensor) -> float:
        spectrum = torch.fft.rfft(channel * torch.hann_window(len(channel))).abs()
        return int(spectrum.argmax()) * 48_000 / len(channel)

    return measure
