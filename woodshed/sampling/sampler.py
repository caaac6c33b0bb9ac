"""From noise to a song's latents, as the original model samples.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width. t = 1 is noise.

Source: ACE-Step 1.5 inference. Turbo walks a fixed table of timesteps without guidance; the other models walk a
shifted line with adaptive projected guidance (Sadat et al. 2024, https://arxiv.org/abs/2410.02416).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from woodshed.models.decoder import Decoder

TURBO_SHIFTS = (1.0, 2.0, 3.0)
TURBO_STEPS = 8
MOMENTUM = -0.75
LARGEST_NORM = 2.5  # of the guidance, over time


def turbo_timesteps(shift: float) -> list[float]:
    """Return the eight timesteps of the turbo models for the nearest of their three shifts."""
    nearest = min(TURBO_SHIFTS, key=lambda known: abs(known - shift))
    return timesteps(TURBO_STEPS, nearest)


def timesteps(steps: int, shift: float) -> list[float]:
    """Return falling timesteps from 1, without the final 0: s u / (1 + (s - 1) u) of evenly spaced u."""
    even = (1 - index / steps for index in range(steps))
    return [shift * u / (1 + (shift - 1) * u) for u in even]


def plan_timesteps(steps: int, shift: float, *, is_turbo: bool) -> list[float]:
    """Return the timesteps of a model: turbo in its own number of steps knows its three tables only."""
    if is_turbo and steps == TURBO_STEPS:
        return turbo_timesteps(shift)
    return timesteps(steps, shift)


@dataclass
class Guidance:
    """Adaptive projected guidance; keeps its momentum from step to step, so make a new one for every song.

    Args:
        scale: 1 does nothing.
        interval: guidance acts while t lies in it, ends included.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    _running: Tensor | None = field(default=None, repr=False)

    def acts_at(self, t: float) -> bool:
        """Tell whether the null condition has to be computed at t."""
        return self.scale > 1 and self.interval[0] <= t <= self.interval[1]

    def __call__(self, with_condition: Tensor, without: Tensor) -> Tensor:
        """Return the guided velocity of two (B, T, C) velocities."""
        difference = with_condition - without
        self._running = difference if self._running is None else difference + MOMENTUM * self._running
        size = self._running.norm(dim=1, keepdim=True)
        limited = self._running * (LARGEST_NORM / size.clamp(min=1e-12)).clamp(max=1)
        return with_condition + (self.scale - 1) * _orthogonal(limited, with_condition)


def _orthogonal(vectors: Tensor, to: Tensor) -> Tensor:
    """Remove from (B, T, C) vectors over time their part along others; in float64 as the original."""
    precision = torch.float32 if vectors.device.type == "mps" else torch.float64
    direction = torch.nn.functional.normalize(to.to(precision), dim=1)
    exact = vectors.to(precision)
    parallel = (exact * direction).sum(dim=1, keepdim=True) * direction
    return (exact - parallel).to(vectors.dtype)


@torch.no_grad()
def walk(
    decoder: Decoder,
    *,
    conditions: Tensor,
    context: Tensor,
    noise: Tensor,
    timesteps: Sequence[float],
    null_condition: Tensor | None = None,
    guidance: Guidance | None = None,
) -> Iterator[Tensor]:
    """Walk from noise to latents by Euler steps.

    Args:
        decoder: with or without an adapter, on the device of the tensors.
        conditions: (B, L, E).
        context: (B, T, 2 C) source latents and chunk mask.
        noise: (B, T, C) float32 standard normal.
        timesteps: falling, the first is where the noise stands, usually 1.
        null_condition: (1, 1, E), needed for guidance.
        guidance: None for turbo models.

    Yields:
        (B, T, C) float32 after each step; the last are the song's latents.
    """
    dtype = decoder.dtype
    latents = noise.float()
    for index, t in enumerate(timesteps):
        following = timesteps[index + 1] if index + 1 < len(timesteps) else 0.0
        velocity = _velocity(decoder, latents, t, conditions, context, dtype)
        if guidance is not None and guidance.acts_at(t):
            assert null_condition is not None, "guidance needs the null condition"
            empty = null_condition.expand_as(conditions)
            velocity = guidance(velocity, _velocity(decoder, latents, t, empty, context, dtype))
        latents = latents - velocity * (t - following)
        yield latents


def sample_latents(decoder: Decoder, **inputs: Any) -> Tensor:
    """Return where `walk`, which takes the same arguments, ends."""
    return deque(walk(decoder, **inputs), maxlen=1)[0]


def _velocity(
    decoder: Decoder, latents: Tensor, t: float, conditions: Tensor, context: Tensor, dtype: torch.dtype
) -> Tensor:
    time = torch.full((len(latents),), t, device=latents.device)
    with torch.autocast(latents.device.type, dtype=dtype, enabled=dtype != torch.float32):
        velocity: Tensor = decoder(
            latents,
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=conditions.float(),
            context_latents=context.float(),
        ).sample
    return velocity.float()


def draw_noise(seed: int, frames: int, channels: int) -> Tensor:
    """Return (1, T, C) noise that is the same on every device."""
    return torch.randn(1, frames, channels, generator=torch.Generator().manual_seed(seed))
