"""LoRA, through PEFT: W x + scale B A x with scale = alpha / rank (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

Shapes: A (rank, in), B (out, rank). B starts at zero, so that an untrained adapter changes nothing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import Parameter

from woodshed.adapters.adapter import RECIPE_KEY, Adapter, Recipe, TrainedBiases, find_linear_layers, train_biases
from woodshed.models.keys import original_to_diffusers
from woodshed.settings.schema import BiasMode
from woodshed.storage import save_tensors

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."
_PEFT_NAME = "default"
_NOT_FOR_DIFFUSERS = (
    "diffusers will ignore this adapter: it knows a LoRA for ACE-Step by q_proj or k_proj, "
    "and the targets have neither."
)


def attach_lora(
    decoder: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, dropout: float, bias: BiasMode
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

    Raises:
        AdapterError: when the decoder lacks a target.
    """
    linears = find_linear_layers(decoder, targets)
    decoder.requires_grad_(False)
    names = [original_to_diffusers(name) for name in targets]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    # On the meta device: PEFT would draw in the precision of the base.
    inject_adapter_in_model(config, decoder, adapter_name=_PEFT_NAME, low_cpu_mem_usage=True)
    layers: dict[str, Any] = {target: decoder.get_submodule(name) for target, name in zip(targets, names, strict=True)}
    injected = [module for module in decoder.modules() if isinstance(module, LoraLinear)]
    assert len(injected) == len(layers), f"PEFT adapted {len(injected)} layers instead of {len(layers)}"
    for target, layer in layers.items():
        a, b = torch.empty(rank, linears[target].in_features), torch.zeros(linears[target].out_features, rank)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        device = linears[target].weight.device
        layer.lora_A[_PEFT_NAME].weight = Parameter(a.to(device))
        layer.lora_B[_PEFT_NAME].weight = Parameter(b.to(device))
    return LoraAdapter(linears, layers, train_biases(decoder, targets, bias), rank=rank, scale=alpha / rank)


class LoraAdapter(Adapter):
    """A LoRA on a decoder."""

    family = "lora"

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        layers: Mapping[str, Any],
        biases: TrainedBiases,
        *,
        rank: int,
        scale: float,
    ) -> None:
        self.rank = rank
        self.scale = scale
        super().__init__(
            linears,
            {
                module: {
                    "lora_A.weight": layer.lora_A[_PEFT_NAME].weight,
                    "lora_B.weight": layer.lora_B[_PEFT_NAME].weight,
                }
                for module, layer in layers.items()
            },
            biases,
        )

    @property
    def notices(self) -> tuple[str, ...]:
        """Add what one player makes of targets without q and k to what biases have to say."""
        if any(module.endswith(("q_proj", "k_proj")) for module in self.modules):
            return super().notices
        return (*super().notices, _NOT_FOR_DIFFUSERS)

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A (rank, in) and scale x B (out, rank) as they are stored: float32, on the CPU."""
        a, b = (self._parameters[f"{module}.lora_{part}.weight"].detach().float().cpu() for part in "AB")
        return a, b * self.scale

    def effective_delta(self, module: str) -> Tensor:
        """Return scale B A."""
        a, b = self.factors(module)
        return (b.double() @ a.double()).float()

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write a PEFT folder whose strength cannot be misread.

        The scale is multiplied into B and the config says alpha = r, because PEFT's weight file does not hold alpha and
        tools that do not read the config would play the adapter at scale 1.
        """
        tensors = {}
        for module in self.modules:
            tensors[f"{KEY_PREFIX}{module}.lora_A.weight"], tensors[f"{KEY_PREFIX}{module}.lora_B.weight"] = (
                self.factors(module)
            )
        for name, parameter in self.biases.parameters.items():
            module = name.removesuffix(".bias")
            inner = ".base_layer" if module in self.modules else ""
            tensors[f"{KEY_PREFIX}{module}{inner}.bias"] = parameter.detach().float().cpu()
        config = _peft_config(self.modules, self.rank, self.biases)
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1), encoding="utf-8")
        header = {"format": "pt", RECIPE_KEY: json.dumps(dict(recipe))}
        save_tensors(folder / WEIGHTS_NAME, tensors, header)


def _peft_config(modules: Sequence[str], rank: int, biases: TrainedBiases) -> dict[str, Any]:
    """Return the smallest config that every version of PEFT reads; older ones fail on keys they do not know."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": biases.mode if biases.parameters else "none",
        "target_modules": list(modules),
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
