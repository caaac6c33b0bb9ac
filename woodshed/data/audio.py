"""Audio files to waveforms: any format FFmpeg knows, always stereo at 48 kHz.

FFmpeg comes inside the PyAV package, so nothing has to be installed beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av import AudioFrame
from av.container import InputContainer
from torch import Tensor

from woodshed.data.ahead import AbandonedError, ShouldStop
from woodshed.errors import DataError

SAMPLE_RATE = 48_000  # of the VAE
AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a")
CUT_SHORT = 0.98  # a file with less than this share of its stated length is damaged
OPTIONS = {"format_whitelist": "wav,w64,aiff,caf,mp3,flac,ogg,mov,aac,matroska", "protocol_whitelist": "file"}
"""What FFmpeg may take a file for. Among the rest are play lists, which would make it open other files."""
JOINED = 2**17  # samples that are resampled at once
STREAMED = 0x7FFF0000  # a WAV header states at least this many bytes where the writer did not know the size


@dataclass(frozen=True)
class AudioFacts:
    """What a file's header says."""

    seconds: float | None  # None when the header does not say
    rate: int
    channels: int


def probe(path: Path) -> AudioFacts:
    """Read a file's header only.

    Raises:
        DataError: when it is no audio file.
    """
    with open_audio(path) as container:
        stream = container.streams.audio[0]
        seconds = None
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / av.time_base
        return AudioFacts(seconds, stream.rate, stream.channels)


def decode(path: Path, *, max_seconds: float = 0, should_stop: ShouldStop = lambda: False) -> Tensor:
    """Decode a file to (2, samples) float32 at 48 kHz, neither clamped nor normalised.

    A mono file plays on both sides; of more than two channels the first two are taken.

    Args:
        path: the file.
        max_seconds: stop there; 0 decodes everything.
        should_stop: asked from time to time; when true, nobody waits for the sound any more.

    Raises:
        DataError: when the file is missing, is no audio, is empty, or breaks off.
        AbandonedError: when it was told to stop.
    """
    limit = round(max_seconds * SAMPLE_RATE) if max_seconds else None
    chunks: list[np.ndarray] = []
    samples = 0
    with open_audio(path) as container:
        try:
            for chunk in _resampled(container):
                chunks.append(chunk[:2])
                samples += chunk.shape[1]
                if should_stop():
                    raise AbandonedError
                if limit is not None and samples >= limit:
                    break
        except (av.FFmpegError, ValueError) as error:  # ValueError: the layout changes in the middle of the file
            at = samples / SAMPLE_RATE
            raise DataError(f"{path} is damaged after {at:.1f} seconds ({_reason(error)}). Replace it.") from error
    if samples == 0:
        raise DataError(f"{path} holds no sound: it has no samples. Remove it or replace it.")
    if limit is None or samples < limit:
        _refuse_cut_short(path, samples / SAMPLE_RATE)
    sound = np.concatenate(chunks, axis=1)[:, :limit]
    stereo = np.repeat(sound, 2, axis=0) if len(sound) == 1 else sound
    return torch.from_numpy(np.ascontiguousarray(stereo))


def _resampled(container: InputContainer) -> Iterator[np.ndarray]:
    """Yield (channels, samples) float32 pieces at 48 kHz, all channels as they are in the file."""
    # Without a layout the resampler keeps the file's own: FFmpeg would otherwise mix surround sound down by itself.
    # Interleaved samples ("flt"), because PyAV crashes on frames with eight or more separate channels.
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
    for frame in _joined(container.decode(container.streams.audio[0])):
        frame.pts = None
        for piece in resampler.resample(frame):
            yield piece.to_ndarray().reshape(-1, piece.layout.nb_channels).T
    for piece in resampler.resample(None):
        yield piece.to_ndarray().reshape(-1, piece.layout.nb_channels).T


def _joined(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    """Yield frames joined to long ones, as long as their kind does not change.

    Compressed frames hold some hundredths of a second. Resampling each would take most of the time, and Python's lock
    with it, so that threads could not decode side by side.
    """
    joined = av.AudioFifo()
    kind = None
    try:
        for frame in frames:
            now = (frame.format.name, frame.layout.name, frame.rate)
            if joined.samples and (now != kind or joined.samples >= JOINED):
                yield joined.read()
            if now != kind:
                joined, kind = av.AudioFifo(), now
            frame.pts = None  # gaps in a file's time stamps are not silence
            joined.write(frame)
    except av.FFmpegError:
        if joined.samples:
            yield joined.read()  # what came before the damage
        raise
    if joined.samples:
        yield joined.read()


def _refuse_cut_short(path: Path, seconds: float) -> None:
    """Refuse a file that holds less than its header says, as a broken download does."""
    stated = _stated_seconds(path, seconds)
    if stated is not None and seconds < CUT_SHORT * stated - 0.1:
        raise DataError(f"{path} is cut short: it says {stated:.1f} seconds and holds {seconds:.1f}. Replace it.")


def _stated_seconds(path: Path, seconds: float) -> float | None:
    """Return the length in the header, None where there is none; FFmpeg's own answer may be what it found or guessed.

    Args:
        path: the file.
        seconds: that it holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"RIFF"):
            stated = int.from_bytes(head[4:8], "little") + 8
            return seconds * stated / size if size < stated < STREAMED else None
        if path.suffix.lower() == ".mp3":
            tag = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + tag if head.startswith(b"ID3") else 0)
            first_frame = file.read(2048)
            if not any(mark in first_frame for mark in (b"Xing", b"Info", b"VBRI")):
                return None  # a guess from the bit rate of the first second
    return probe(path).seconds


@contextmanager
def open_audio(path: Path) -> Iterator[InputContainer]:
    """Open a file that holds sound.

    Raises:
        DataError: when there is none.
    """
    if not path.is_file():
        raise DataError(f"There is no audio file {path}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: it has no bytes. Remove it or replace it.")
    try:
        # An absolute path, because FFmpeg takes what stands before a colon in a name for a protocol.
        container = av.open(str(path.absolute()), options=OPTIONS)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is no audio file that can be read ({_reason(error)}). Remove it or replace it."
        ) from error
    with container:
        if not container.streams.audio:
            raise DataError(f"{path} holds no sound: it has no audio stream. Remove it or replace it.")
        yield container


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
