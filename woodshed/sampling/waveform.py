"""Latents to sound, and sound to files."""

from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

PEAK = 10 ** (-1 / 20)  # -1 dBFS, what the original's inference scales to


@torch.no_grad()
def decode_latents(
    vae: AutoencoderOobleck, latents: Tensor, *, tile_frames: int = 750, overlap_frames: int = 50
) -> Tensor:
    """Decode (T, C) latents to a (2, samples) waveform in [-1, 1], peaking at -1 dBFS.

    Tiles overlap by more than the decoder's receptive field, so that the result does not depend on them.
    """
    hop = int(torch.tensor(vae.config.downsampling_ratios).prod())
    frames, pieces = len(latents), []
    core = tile_frames - 2 * overlap_frames
    for start in range(0, frames, core):
        end = min(start + core, frames)
        seen_from, seen_to = max(start - overlap_frames, 0), min(end + overlap_frames, frames)
        tile = latents[None, seen_from:seen_to].transpose(1, 2).to(vae.device, vae.dtype)
        sound = vae.decode(tile).sample[0].float().cpu()
        pieces.append(sound[:, (start - seen_from) * hop : (end - seen_from) * hop])
    waveform = torch.cat(pieces, dim=1)
    return waveform * (PEAK / waveform.abs().max().clamp(min=1e-9))


def write_wav(path: Path, waveform: Tensor, *, sample_rate: int = 48_000) -> None:
    """Write a (2, samples) waveform in [-1, 1] as 24-bit WAV, whole or not at all."""
    scaled = (waveform.clamp(-1, 1).double().numpy() * (2**31 - 1)).astype(np.int32)
    samples = np.ascontiguousarray(scaled.T).reshape(1, -1)  # interleaved
    building = path.with_name(f".{path.name}.writing")
    try:
        with av.open(str(building), "w", format="wav") as container:
            stream = container.add_stream("pcm_s24le", rate=sample_rate)
            stream.layout = "stereo"
            frame = av.AudioFrame.from_ndarray(samples, format="s32", layout="stereo")
            frame.sample_rate = sample_rate
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
