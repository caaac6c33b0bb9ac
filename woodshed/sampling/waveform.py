"""Latents to sound, and sound to files."""

from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from woodshed.data.audio import OPTIONS
from woodshed.data.latents import hop_of
from woodshed.errors import UserError
from woodshed.storage import whole_file

PEAK = 10 ** (-1 / 20)  # -1 dBFS, what the original's inference scales to
CODECS = {".wav": "pcm_s24le", ".flac": "flac"}
"""The codec for each ending of a file's name; both keep 24 bits of every sample."""


@torch.no_grad()
def decode_latents(
    vae: AutoencoderOobleck,
    latents: Tensor,
    *,
    tile_frames: int = 750,
    overlap_frames: int = 50,
    samples: int | None = None,
) -> Tensor:
    """Decode (T, C) latents to a (2, samples) waveform in [-1, 1], peaking at -1 dBFS.

    Tiles overlap by more than the decoder's receptive field, so that the result does not depend on them.

    Args:
        vae: on any device, in any precision.
        latents: (T, C).
        tile_frames: what is decoded at once, overlaps included.
        overlap_frames: on either side of a tile.
        samples: how many to keep, from the start; all unless given. What is cut off has no part in the peak.
    """
    hop = hop_of(vae)
    frames = len(latents) if samples is None else min(-(-samples // hop), len(latents))
    pieces = []
    core = tile_frames - 2 * overlap_frames
    for start in range(0, frames, core):
        end = min(start + core, frames)
        seen_from, seen_to = max(start - overlap_frames, 0), min(end + overlap_frames, len(latents))
        tile = latents[None, seen_from:seen_to].transpose(1, 2).to(vae.device, vae.dtype)
        sound = vae.decode(tile).sample[0].float().cpu()
        pieces.append(sound[:, (start - seen_from) * hop : (end - seen_from) * hop])
    waveform = torch.cat(pieces, dim=1)[:, :samples]
    return waveform * (PEAK / waveform.abs().max().clamp(min=1e-9))


def write_sound(
    path: Path, waveform: Tensor, *, sample_rate: int = 48_000, tags: Mapping[str, str] | None = None
) -> None:
    """Write a (2, samples) waveform in [-1, 1] with 24 bits a sample, whole or not at all.

    Args:
        path: ending in .wav or .flac.
        waveform: what lies beyond [-1, 1] is clamped.
        sample_rate: in Hz.
        tags: text by name; of the names, both formats know title, comment, artist, date and genre.

    Raises:
        OSError: when the disk is full or the folder cannot be written to.
        UserError: when the sound cannot be encoded.
    """
    try:
        _write(path, waveform, sample_rate, tags or {})
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise UserError(f"{path} cannot be written: {error}.") from error


def _write(path: Path, waveform: Tensor, sample_rate: int, tags: Mapping[str, str]) -> None:
    scaled = (waveform.clamp(-1, 1).double().numpy() * (2**31 - 1)).astype(np.int32)
    samples = np.ascontiguousarray(scaled.T).reshape(1, -1)  # interleaved
    ending = path.suffix.lower()
    with whole_file(path) as building, av.open(str(building.absolute()), "w", format=ending[1:]) as container:
        container.metadata.update(tags)
        stream = container.add_stream(CODECS[ending], rate=sample_rate, layout="stereo", format="s32")
        frame = av.AudioFrame.from_ndarray(samples, format="s32", layout="stereo")
        frame.sample_rate = sample_rate
        resampler = av.AudioResampler(
            "s32", "stereo", sample_rate, frame_size=stream.codec_context.frame_size or None
        )  # cuts the song into the pieces that a codec takes
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            for packet in stream.encode(piece):
                container.mux(packet)


def read_tags(path: Path) -> dict[str, str]:
    """Return a sound file's tags by name in small letters.

    Raises:
        UserError: when it is no sound file.
    """
    try:
        with av.open(str(path.absolute()), options=OPTIONS) as container:
            return {name.lower(): value for name, value in container.metadata.items()}
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} is no sound file that can be read: {error}.") from error
