"""LoRA, through PEFT: W x + scale B A x with scale = alpha / rank (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

Shapes: A (rank, in), B (out, rank). B starts at zero, so that an untrained adapter changes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.adapter import Adapter, Recipe, TrainedBiases, find_linear_layers, train_biases
from woodshed.adapters.changes import LowRank
from woodshed.adapters.content import Content
from woodshed.adapters.injection import NAME, inject
from woodshed.adapters.peft_format import write_peft
from woodshed.adapters.ranks import filling_notices, module_ranks
from woodshed.models.keys import original_to_diffusers
from woodshed.settings.schema import BiasMode

_NOT_FOR_DIFFUSERS = (
    "diffusers will ignore this adapter: it knows a LoRA for ACE-Step by q_proj or k_proj, "
    "and the targets have neither. `woodshed export --to diffusers` makes a file that it reads."
)


def attach_lora(
    decoder: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    bias: BiasMode,
    rank_pattern: Sequence[str] = (),
) -> "LoraAdapter":
    """Freeze a decoder and put a trainable LoRA on some of its linear layers.

    A is drawn on the CPU from torch's global generator, so that a seed means the same adapter on every device and
    with every precision of the base.

    Args:
        decoder: with the module names of diffusers; changed in place.
        targets: original names of the linear layers.
        rank: at least 1.
        alpha: positive; the strength is alpha / rank.
        dropout: of the layer's input on the adapter's path, in [0, 1).
        bias: which of the base model's biases train too.
        rank_pattern: rank and alpha of some modules, see `ranks`.

    Raises:
        AdapterError: when the decoder lacks a target.
    """
    linears, layers = inject_lora(decoder, targets, module_ranks(targets, rank, alpha, rank_pattern), dropout)
    return LoraAdapter(linears, layers, train_biases(decoder, targets, bias))


def inject_lora(
    decoder: nn.Module, targets: Sequence[str], sizes: Mapping[str, tuple[int, float]], dropout: float
) -> tuple[dict[str, nn.Linear], dict[str, Any]]:
    """Return the frozen linear layers and PEFT's layers in their places, by original name.

    Args:
        decoder: changed in place.
        targets: original names of the linear layers.
        sizes: rank and alpha of each.
        dropout: of the layer's input on the adapter's path.
    """
    linears = find_linear_layers(decoder, targets)
    decoder.requires_grad_(False)
    config = LoraConfig(
        lora_dropout=dropout,
        rank_pattern={original_to_diffusers(name): rank for name, (rank, _) in sizes.items()},
        alpha_pattern={original_to_diffusers(name): alpha for name, (_, alpha) in sizes.items()},
    )
    layers = inject(decoder, targets, config)
    for target, layer in layers.items():
        linear, (rank, _) = linears[target], sizes[target]
        a, b = torch.empty(rank, linear.in_features), torch.zeros(linear.out_features, rank)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        layer.lora_A[NAME].weight = Parameter(a.to(linear.weight.device))
        layer.lora_B[NAME].weight = Parameter(b.to(linear.weight.device))
    return linears, layers


class LoraAdapter(Adapter):
    """A LoRA on a decoder."""

    family = "lora"

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        layers: Mapping[str, Any],
        biases: TrainedBiases,
        magnitudes: Mapping[str, Parameter] | None = None,
    ) -> None:
        self.scales: dict[str, float] = {module: layer.scaling[NAME] for module, layer in layers.items()}
        parameters = {
            module: {
                "lora_A.weight": layer.lora_A[NAME].weight,
                "lora_B.weight": layer.lora_B[NAME].weight,
                **({"lora_magnitude_vector": magnitudes[module]} if magnitudes else {}),
            }
            for module, layer in layers.items()
        }
        super().__init__(linears, parameters, biases, undecayed=["lora_magnitude_vector"])

    @property
    def notices(self) -> tuple[str, ...]:
        """Add what several ranks, and targets without q and k, mean for players to what biases have to say."""
        filling = filling_notices(self.change(module).rank for module in self.modules)
        has_queries = any(module.endswith(("q_proj", "k_proj")) for module in self.modules)
        return (*super().notices, *filling, *(() if has_queries else (_NOT_FOR_DIFFUSERS,)))

    def change(self, module: str) -> LowRank:
        """Return A, B and the scale as they are now: float32, on the CPU."""
        a, b = (self._parameters[f"{module}.lora_{part}.weight"].detach().float().cpu() for part in "AB")
        return LowRank(a, b, self.scales[module])

    def effective_delta(self, module: str) -> Tensor:
        """Return scale B A."""
        a, b = (self._parameters[f"{module}.lora_{part}.weight"].detach().cpu().double() for part in "AB")
        return (b @ a * self.scales[module]).float()

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write a PEFT folder whose strength cannot be misread."""
        biases = {name: value.detach().float().cpu() for name, value in self.biases.parameters.items()}
        changes = {module: self.change(module) for module in self.modules}
        write_peft(folder, Content(changes, recipe, biases=biases))
