"""Waveforms to latents, in tiles, so that a long song needs no more memory than a short one.

Shapes: S samples at 48 kHz, T latent frames of `hop` samples, C latent channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from torch import Tensor

TILE_SECONDS = 30
OVERLAP_SECONDS = 2
"""What a tile sees beyond its own part on either side. Source: ACE-Step 1.5 preprocessing."""


@dataclass(frozen=True)
class Posterior:
    """What the VAE makes of a song: a normal distribution per frame and channel."""

    mean: Tensor  # (T, C) float32, on the CPU
    std: Tensor  # (T, C)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw latents, as the original does: mean + std x noise."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


def hop_of(vae: AutoencoderOobleck) -> int:
    """Return the samples per latent frame."""
    return int(torch.tensor(vae.config.downsampling_ratios).prod())


@torch.no_grad()
def encode_waveform(
    vae: AutoencoderOobleck,
    waveform: Tensor,
    *,
    tile_seconds: float = TILE_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
) -> Posterior:
    """Encode a song; the result does not depend on the tiles, up to rounding.

    Tiles begin on frames, so that none shifts. The samples after the last whole frame have no frame of their own, but
    the last frames hear them, as in the untiled encoder.

    Args:
        vae: on any device, in any precision.
        waveform: (2, S).
        tile_seconds: length of a tile with its overlaps.
        overlap_seconds: on either side of a tile; more than the VAE's receptive field.

    Returns:
        T = S // hop frames, at least one.
    """
    hop, rate = hop_of(vae), vae.config.sampling_rate
    waveform = F.pad(waveform, (0, max(hop - waveform.shape[1], 0)))
    frames = waveform.shape[1] // hop
    overlap = round(overlap_seconds * rate / hop)
    core = round(tile_seconds * rate / hop) - 2 * overlap
    assert core > 0, "a tile is longer than its overlaps"
    means, stds = [], []
    for start in range(0, frames, core):
        end = min(start + core, frames)
        seen_from, seen_to = max(start - overlap, 0), min(end + overlap, frames)
        stop = seen_to * hop if seen_to < frames else None
        tile = waveform[None, :, seen_from * hop : stop].to(vae.device, vae.dtype)
        posterior = vae.encode(tile).latent_dist
        own = slice(start - seen_from, end - seen_from)
        means.append(posterior.mean[0, :, own].T.float().cpu())
        stds.append(posterior.std[0, :, own].T.float().cpu())
    return Posterior(torch.cat(means), torch.cat(stds))
