"""The objective: flow matching on a straight line from a song's latents (t = 0) to noise (t = 1).

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[..., Tensor]


def mix_with_noise(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the point at t on the line from latents to noise.

    Args:
        latents: (B, T, C).
        noise: (B, T, C) standard normal.
        t: (B,) in [0, 1].

    Source: Lipman et al. 2023, section 4.1 (Example II), with time reversed, https://arxiv.org/abs/2210.02747
    """
    t = t[:, None, None]
    return t * noise + (1 - t) * latents


def true_velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Return the derivative of `mix_with_noise` with respect to t: constant along the line."""
    return noise - latents


def drop_conditions(conditions: Tensor, null_condition: Tensor, dropped: Tensor) -> Tensor:
    """Replace the whole condition sequence of some songs by the model's null embedding (CFG dropout).

    Args:
        conditions: (B, L, E) packed lyric, timbre and text states.
        null_condition: (1, 1, E).
        dropped: (B,) bool.

    Source: training forward of ACE-Step 1.5; the context latents are never dropped.
    """
    return torch.where(dropped[:, None, None], null_condition.to(conditions.dtype), conditions)


def flow_matching_loss(predicted: Tensor, latents: Tensor, noise: Tensor, frame_lengths: Tensor | None) -> Tensor:
    """Squared error between predicted and true velocity, averaged over each song's own frames and channels.

    Args:
        predicted: (B, T, C) the decoder's velocity, in any float format.
        latents: (B, T, C) float32.
        noise: (B, T, C) float32.
        frame_lengths: (B,) valid frames of each song, or None when all T are.

    Returns:
        (B,) float32, one loss per song, so that a batch is the mean of its songs whatever their lengths.
    """
    error = (predicted.float() - true_velocity(latents, noise)).square().mean(dim=-1)
    if frame_lengths is None:
        return error.mean(dim=-1)
    is_valid = torch.arange(error.shape[1], device=error.device) < frame_lengths[:, None]
    return (error * is_valid).sum(dim=-1) / frame_lengths
