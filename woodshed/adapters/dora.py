"""DoRA: m (W + scale B A) x / |W + scale B A|, a LoRA whose rows have trained norms m (out,).

The factors are PEFT's; the norms are ours, because PEFT takes them in the precision of the activations, where bf16
moves every row by up to 0.4 % before anything is trained. As in the paper no gradient flows through the norms of
the changed weight. Source: Liu et al. 2024, https://arxiv.org/abs/2402.09353, section 4.3.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.adapter import train_biases
from woodshed.adapters.changes import LowRank, Norms
from woodshed.adapters.injection import NAME
from woodshed.adapters.lora import LoraAdapter, inject_lora
from woodshed.adapters.ranks import module_ranks
from woodshed.settings.schema import BiasMode

_CONTAINER = "woodshed_dora"


def attach_dora(
    decoder: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    bias: BiasMode,
    rank_pattern: Sequence[str] = (),
) -> "DoraAdapter":
    """Freeze a decoder and put a trainable DoRA on some of its linear layers; arguments as for `attach_lora`.

    Raises:
        AdapterError: when the decoder lacks a target.
    """
    linears, layers = inject_lora(decoder, targets, module_ranks(targets, rank, alpha, rank_pattern), dropout)
    magnitudes = {name: Parameter(linear.weight.detach().float().norm(dim=1)) for name, linear in linears.items()}
    for name, layer in layers.items():
        layer.register_forward_hook(partial(_rescale, magnitudes[name]))
    # Part of the decoder, so that devices, DistributedDataParallel and counts see the parameters.
    decoder.register_module(_CONTAINER, nn.ParameterList(magnitudes.values()))
    return DoraAdapter(linears, layers, train_biases(decoder, targets, bias), magnitudes)


def _rescale(magnitude: Tensor, layer: Any, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Bring the rows of the changed weight to their trained norms; a forward hook of PEFT's layer."""
    linear = layer.base_layer
    with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
        product = layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight
        norms = (linear.weight.float() + product * layer.scaling[NAME]).norm(dim=1)
    bias = 0.0 if linear.bias is None else linear.bias.float()
    # In float32: near 1 bf16 knows no step smaller than 0.4 %.
    scaled: Tensor = (output.float() - bias) * (magnitude / norms) + bias
    return scaled.to(output.dtype)


class DoraAdapter(LoraAdapter):
    """A DoRA on a decoder."""

    family = "dora"

    def change(self, module: str) -> LowRank:
        """Return the factors and the norms as they are now."""
        return replace(super().change(module), norms=Norms(self._magnitude(module).float()))

    def effective_delta(self, module: str) -> Tensor:
        """Return what factors and norms change."""
        weight = self.base_weight(module).double()
        changed = weight + super().effective_delta(module).double()
        turned: Tensor = changed / changed.norm(dim=1, keepdim=True) * self._magnitude(module)[:, None]
        return (turned - weight).float()

    def _magnitude(self, module: str) -> Tensor:
        return self._parameters[f"{module}.lora_magnitude_vector"].detach().cpu().double()
