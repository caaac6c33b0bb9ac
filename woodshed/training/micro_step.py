"""A micro-step: forward pass, loss and gradients of the songs that are computed together.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from woodshed.data.dataset import Batch
from woodshed.models.decoder import Decoder
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise
from woodshed.training.randomness import Draws


@dataclass(frozen=True)
class Inputs:
    """All that a micro-step depends on beside the model: songs that are computed together, and their draws."""

    rows: tuple[int, ...]  # B places in the batch
    latents: Tensor  # (B, T, C) float32
    context: Tensor  # (B, T, 2 C) float32
    conditions: Tensor  # (B, L, E) float32
    frame_lengths: Tensor | None  # (B,) real frames of each song; None when all are
    condition_lengths: Tensor | None  # (B,) the same of the conditions
    noise: Tensor  # (B, T, C) float32
    t: Tensor  # (B,) float32
    dropped: Tensor  # (B,) bool: whose conditions become the null embedding

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return inputs with every tensor changed."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **changed)

    def to(self, device: torch.device) -> "Inputs":
        """Copy to a device; from pinned memory without waiting."""
        return self.map(lambda value: value.to(device, non_blocking=True))


@dataclass(frozen=True)
class Songs:
    """A batch with all that chance decides about it."""

    names: tuple[str, ...]
    frames: tuple[int, ...]  # real ones of each song
    seed: int  # of the adapter's dropout
    parts: tuple[Inputs, ...]  # computed one after the other; lengths and draws may still be on the CPU
    arrival: torch.cuda.Event | None = None  # on the stream that makes the parts; None where there is no such stream

    def arrived(self) -> tuple[Inputs, ...]:
        """Return the parts, which the current stream may read from here on."""
        if self.arrival is not None:
            stream = torch.cuda.current_stream(self.arrival.device)
            stream.wait_event(self.arrival)
            for part in self.parts:
                for value in part.tensors().values():
                    value.record_stream(stream)  # whoever frees it waits until it was read
        return self.parts


@dataclass(frozen=True)
class Model:
    """What a micro-step computes with."""

    decoder: Decoder
    null_condition: Tensor  # (1, 1, E)
    parameters: list[Parameter]  # that get gradients
    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Return the context in which the decoder computes in the run's precision."""
        # Without its cache of casts, which would outlive a captured graph; no weight is cast twice in a step anyway.
        is_narrow = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=is_narrow, cache_enabled=False)


def inputs_of(batch: Batch, draws: Draws) -> Inputs:
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
    )


def forward_backward(model: Model, inputs: Inputs, weight: Tensor) -> Tensor:
    """Add the gradients of the songs' flow-matching loss; return the (B,) losses.

    Args:
        model: its parameters get the gradients.
        inputs: on the model's device.
        weight: () what a song's loss counts in the gradient.
    """
    conditions = drop_conditions(inputs.conditions, model.null_condition, inputs.dropped)
    noisy_latents = mix_with_noise(inputs.latents, inputs.noise, inputs.t)
    with model.autocast():
        velocity = model.decoder(
            noisy_latents,
            timestep=inputs.t,
            timestep_r=inputs.t,  # r = t: the model was trained without mean flow
            encoder_hidden_states=conditions,
            context_latents=inputs.context,
            frame_lengths=inputs.frame_lengths,
            condition_lengths=inputs.condition_lengths,
        ).sample
    loss = flow_matching_loss(velocity, inputs.latents, inputs.noise, inputs.frame_lengths)
    (loss.sum() * weight).backward()
    return loss.detach()
