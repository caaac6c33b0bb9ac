"""The training objective on the frozen decoder: its loss, and the gradient that it sends to each module."""

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from woodshed.analysis.gradients import GradientNorms
from woodshed.data.dataset import Batch
from woodshed.errors import UserError
from woodshed.models.checkpoints import Checkpoint
from woodshed.models.decoder import Decoder
from woodshed.models.keys import original_to_diffusers
from woodshed.models.load import load_decoder, load_null_condition
from woodshed.training.flow import drop_conditions, flow_matching_loss, mix_with_noise
from woodshed.training.randomness import Draws

FLOAT16_SCALES = (2.0**14, 2.0**10, 2.0**6, 1.0)
"""What a float16 loss is multiplied by, so that small gradients survive: the largest that does not overflow."""


class Objective:
    """A decoder that tells how strongly each of some modules is pulled; use it as a context.

    Args:
        checkpoint: of the model.
        modules: original names of linear layers.
        dtype, device: in which and where the model is held and computes.
        gradient_checkpointing: compute activations again instead of keeping them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        modules: Mapping[str, object],
        *,
        dtype: torch.dtype,
        device: torch.device,
        gradient_checkpointing: bool,
    ) -> None:
        self._dtype, self._device = dtype, device
        self._decoder: Decoder = load_decoder(checkpoint, dtype=dtype, device=device)
        self._null_condition: Tensor = load_null_condition(checkpoint, dtype=dtype, device=device)
        if gradient_checkpointing:
            self._decoder.enable_gradient_checkpointing()
        self._scales = list(FLOAT16_SCALES) if dtype == torch.float16 else [1.0]
        self._norms = GradientNorms(
            {name: self._decoder.get_submodule(original_to_diffusers(name)).weight for name in modules}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._norms.close()

    def measure(self, batch: Batch, draws: Draws) -> tuple[float, dict[str, float]]:
        """Return the training loss of one song and the norm of its gradient in every module.

        Raises:
            UserError: when they are no finite numbers.
        """
        while True:
            scale = self._scales[0]
            loss = self._loss(batch.to(self._device, torch.float32), draws.to(self._device))
            (loss * scale).backward()
            value, norms = loss.item(), self._norms.collect()
            if all(map(math.isfinite, (value, *norms.values()))):
                return value, {name: norm / scale for name, norm in norms.items()}
            if len(self._scales) == 1:
                raise UserError(
                    f"The gradient of {batch.names[0]} at noise level {draws.t.item():.3f} is not a finite number "
                    f"(loss {value:g}). Use --precision fp32, or encode that song again."
                )
            del self._scales[0]

    def _loss(self, batch: Batch, draws: Draws) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            velocity = self._decoder(
                mix_with_noise(batch.latents, draws.noise, draws.t),
                timestep=draws.t,
                timestep_r=draws.t,
                encoder_hidden_states=drop_conditions(batch.conditions, self._null_condition, draws.dropped),
                context_latents=batch.context,
            ).sample
        return flow_matching_loss(velocity, batch.latents, draws.noise, None).mean()
