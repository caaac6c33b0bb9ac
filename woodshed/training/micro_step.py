"""A micro-step: forward pass, loss and gradients of the songs that are computed together.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from woodshed.data.dataset import Batch
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise
from woodshed.training.randomness import Draws

if TYPE_CHECKING:
    from woodshed.training.run import Run


@dataclass(frozen=True)
class Inputs:
    """All that a micro-step depends on beside the model, on the device."""

    rows: tuple[int, ...]  # B places in the batch
    latents: Tensor  # (B, T, C) float32
    context: Tensor  # (B, T, 2 C) float32
    conditions: Tensor  # (B, L, E) float32
    frame_lengths: Tensor | None  # (B,) real frames of each song; None when all are
    condition_lengths: Tensor | None  # (B,) the same of the conditions
    noise: Tensor  # (B, T, C) float32
    t: Tensor  # (B,) float32
    dropped: Tensor  # (B,) bool: whose conditions become the null embedding
    weight: Tensor  # () what a song's loss counts in the gradient
    seed: int  # of the adapter's dropout

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def copy(self) -> "Inputs":
        """Return inputs with memory of their own."""
        return replace(self, **{name: value.clone() for name, value in self.tensors().items()})

    def to(self, device: torch.device) -> "Inputs":
        """Copy to a device; from pinned memory without waiting."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})


def inputs_of(batch: Batch, draws: Draws, weight: Tensor, seed: int) -> Inputs:
    """Put a batch and its draws together."""
    return Inputs(
        rows=tuple(range(len(batch.names))),
        latents=batch.latents.float(),
        context=batch.context.float(),
        conditions=batch.conditions.float(),
        frame_lengths=batch.frame_lengths,
        condition_lengths=batch.condition_lengths,
        noise=draws.noise,
        t=draws.t,
        dropped=draws.dropped,
        weight=weight,
        seed=seed,
    )


def forward_backward(run: "Run", inputs: Inputs) -> Tensor:
    """Add the gradients of the songs' flow-matching loss; return the (B,) losses."""
    conditions = drop_conditions(inputs.conditions, run.null_condition, inputs.dropped)
    noisy_latents = mix_with_noise(inputs.latents, inputs.noise, inputs.t)
    with run.autocast():
        velocity = run.decoder(
            noisy_latents,
            timestep=inputs.t,
            timestep_r=inputs.t,  # r = t: the model was trained without mean flow
            encoder_hidden_states=conditions,
            context_latents=inputs.context,
            frame_lengths=inputs.frame_lengths,
            condition_lengths=inputs.condition_lengths,
        ).sample
    loss = flow_matching_loss(velocity, inputs.latents, inputs.noise, inputs.frame_lengths)
    (loss.sum() * inputs.weight).backward()  # type: ignore[no-untyped-call]
    return loss.detach()
