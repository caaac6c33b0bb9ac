"""Other libraries as players of an adapter, to ask each which velocity the model gives with it."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import AceStepLoraLoaderMixin
from peft import PeftModel
from torch import Tensor, nn

from woodshed.models.decoder import Decoder
from woodshed.models.keys import diffusers_to_original, original_to_diffusers


@torch.no_grad()
def velocity_through_peft(decoder: Decoder, adapter: Path, inputs: dict[str, Any]) -> Tensor:
    """Let PEFT load a folder onto the original module names, as ACE-Step does, and merge it; return the velocity.

    Args:
        decoder: without adapter; changed in place.
        adapter: a PEFT folder.
        inputs: of the decoder's forward pass.
    """
    merged = PeftModel.from_pretrained(original_tree(decoder), str(adapter)).merge_and_unload()
    weights = {original_to_diffusers(name): value for name, value in merged.state_dict().items()}
    decoder.load_state_dict({**decoder.state_dict(), **weights})
    velocity: Tensor = decoder(**inputs).sample
    return velocity


@torch.no_grad()
def velocity_through_diffusers(decoder: Decoder, adapter: Path, inputs: dict[str, Any]) -> Tensor:
    """Let diffusers' pipeline loader load a folder; return the velocity."""

    class Pipeline(AceStepLoraLoaderMixin):  # type: ignore[misc] # the part of a pipeline that the loader needs
        transformer = decoder
        components = {"transformer": decoder}  # noqa: RUF012 - as diffusers reads it
        hf_device_map = None

    Pipeline().load_lora_weights(str(adapter))
    velocity: Tensor = decoder(**inputs).sample
    return velocity


def original_tree(decoder: Decoder) -> nn.Module:
    """Return the decoder's layers as a tree of modules with the names of ACE-Step's own code."""
    root = nn.Module()
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            *path, leaf = diffusers_to_original(name).split(".")
            parent = root
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, module)
    return root
