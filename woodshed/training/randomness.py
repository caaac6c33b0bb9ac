"""Every random draw of a run as a function of (seed, epoch, song), not of history.

Hence a resumed run needs no generator state, a song meets the same noise in any batch, and what is done between two
steps (samples, validation) cannot disturb the training. See docs/decisions/0003.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from woodshed.data.dataset import Batch
from woodshed.settings.schema import Mode
from woodshed.training.timesteps import sample_timesteps, sample_turbo_timesteps


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on nothing else."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Draws:
    """What chance decides about the songs of one batch."""

    dropped: Tensor  # (B,) bool: whose conditions become the null embedding
    noise: Tensor  # (B, T, C) float32; zero where a song has no frame
    t: Tensor  # (B,) float32 in [0, 1]

    def to(self, device: torch.device) -> "Draws":
        """Copy to a device."""
        return Draws(self.dropped.to(device), self.noise.to(device), self.t.to(device))


@dataclass(frozen=True)
class DrawRules:
    """The distributions a run draws from."""

    mode: Mode
    cfg_ratio: float
    timestep_mu: float
    timestep_sigma: float

    @property
    def dropout_probability(self) -> float:
        """How often a song loses its conditions; vanilla mode has no CFG dropout."""
        return 0.0 if self.mode == "vanilla" else self.cfg_ratio


def draw_for_songs(rules: DrawRules, seed: int, epoch: int, batch: Batch) -> Draws:
    """Draw dropout, noise and t for each song from a generator of its own, in the order of the model's own training.

    Args:
        rules: the run's distributions.
        seed: the run's seed.
        epoch: counts from 1.
        batch: B songs on the CPU.
    """
    noise = torch.zeros(batch.latents.shape)
    dropped, t = [], []
    for row, (name, frames) in enumerate(zip(batch.names, batch.frames, strict=True)):
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, name))
        dropped.append(torch.rand(1, generator=generator) < rules.dropout_probability)
        noise[row, :frames] = torch.randn(frames, noise.shape[2], generator=generator)
        t.append(_draw_timestep(rules, generator))
    return Draws(torch.cat(dropped), noise, torch.cat(t))


def _draw_timestep(rules: DrawRules, generator: torch.Generator) -> Tensor:
    if rules.mode == "vanilla":
        return sample_turbo_timesteps(1, generator=generator)
    return sample_timesteps(1, mu=rules.timestep_mu, sigma=rules.timestep_sigma, generator=generator)
