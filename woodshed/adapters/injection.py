"""Layers of PEFT in the places of a decoder's linear layers."""

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from woodshed.models.keys import original_to_diffusers

NAME = "default"
"""What PEFT calls the one adapter there is."""


def inject(decoder: nn.Module, targets: Sequence[str], config: PeftConfig) -> dict[str, Any]:
    """Let PEFT put its layers on the targets and nothing else; return them by original name.

    Their parameters are on the meta device, for PEFT would draw them in the precision of the base: whoever calls gives
    each its values.

    Args:
        decoder: with the module names of diffusers; changed in place.
        targets: original names of linear layers that it has.
        config: of a family; its targets are set here.
    """
    names = [original_to_diffusers(name) for name in targets]
    config.target_modules = names
    inject_adapter_in_model(config, decoder, adapter_name=NAME, low_cpu_mem_usage=True)
    injected = [module for module in decoder.modules() if isinstance(module, BaseTunerLayer)]
    assert len(injected) == len(targets), f"PEFT adapted {len(injected)} layers instead of {len(targets)}"
    return {target: decoder.get_submodule(name) for target, name in zip(targets, names, strict=True)}
