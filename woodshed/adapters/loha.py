"""LoHa, through PEFT: W x + scale ((w1_a w1_b) * (w2_a w2_b)) x, the products multiplied entry by entry.

Shapes: w1_a, w2_a (out, rank); w1_b, w2_b (rank, in). The rank of the difference is up to rank squared. w2_b starts at
zero, so that an untrained adapter changes nothing. Source: Hyeon-Woo et al. 2022, https://arxiv.org/abs/2108.06098.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.adapter import Adapter, Recipe, find_linear_layers, train_biases
from woodshed.adapters.changes import Hadamard
from woodshed.adapters.content import Content
from woodshed.adapters.injection import NAME, inject
from woodshed.adapters.peft_format import write_peft
from woodshed.adapters.ranks import filling_notices, module_ranks
from woodshed.models.keys import original_to_diffusers

PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def attach_loha(
    decoder: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, rank_pattern: Sequence[str] = ()
) -> "LohaAdapter":
    """Freeze a decoder and put a trainable LoHa on some of its linear layers.

    The factors are drawn on the CPU from torch's global generator, as PEFT draws them.

    Args:
        decoder: with the module names of diffusers; changed in place.
        targets: original names of the linear layers.
        rank: of each of the two products, at least 1.
        alpha: positive; the strength is alpha / rank.
        rank_pattern: rank and alpha of some modules, see `ranks`.

    Raises:
        AdapterError: when the decoder lacks a target.
    """
    linears = find_linear_layers(decoder, targets)
    decoder.requires_grad_(False)
    sizes = module_ranks(targets, rank, alpha, rank_pattern)
    config = LoHaConfig(
        rank_pattern={original_to_diffusers(name): rank for name, (rank, _) in sizes.items()},
        alpha_pattern={original_to_diffusers(name): alpha for name, (_, alpha) in sizes.items()},
    )
    layers = inject(decoder, targets, config)
    for target, layer in layers.items():
        linear, (own, _) = linears[target], sizes[target]
        for part in PARTS:
            size = (linear.out_features, own) if part.endswith("_a") else (own, linear.in_features)
            values = torch.zeros(size)
            if part != "hada_w2_b":
                nn.init.kaiming_uniform_(values, a=math.sqrt(5))
            getattr(layer, part)[NAME] = Parameter(values.to(linear.weight.device))
    return LohaAdapter(decoder, linears, layers)


class LohaAdapter(Adapter):
    """A LoHa on a decoder."""

    family = "loha"

    def __init__(self, decoder: nn.Module, linears: Mapping[str, nn.Linear], layers: Mapping[str, Any]) -> None:
        self.scales: dict[str, float] = {module: layer.scaling[NAME] for module, layer in layers.items()}
        parameters = {module: {part: getattr(layer, part)[NAME] for part in PARTS} for module, layer in layers.items()}
        super().__init__(linears, parameters, train_biases(decoder, [], "none"))

    @property
    def notices(self) -> tuple[str, ...]:
        """Say what several ranks mean for the file."""
        return filling_notices(self.change(module).rank for module in self.modules)

    def change(self, module: str) -> Hadamard:
        """Return the factors and the scale as they are now: float32, on the CPU."""
        w1_a, w1_b, w2_a, w2_b = self._values(module)
        return Hadamard(w1_a, w1_b, w2_a, w2_b, self.scales[module])

    def effective_delta(self, module: str) -> Tensor:
        """Return the scaled entries' product."""
        w1_a, w1_b, w2_a, w2_b = (value.double() for value in self._values(module))
        return ((w1_a @ w1_b) * (w2_a @ w2_b) * self.scales[module]).float()

    def _values(self, module: str) -> list[Tensor]:
        return [self._parameters[f"{module}.{part}"].detach().float().cpu() for part in PARTS]

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write the PEFT folder that ACE-Step loads."""
        write_peft(folder, Content({module: self.change(module) for module in self.modules}, recipe))
