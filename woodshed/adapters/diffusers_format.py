"""diffusers' file: a LoRA or DoRA in the names of its pipeline, with the scale in the second factor.

Any name with `lora` in it is read there and nothing else: no alpha, no other family. Trained biases have no place.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from woodshed.adapters.adapter import RECIPE_KEY
from woodshed.adapters.changes import LowRank
from woodshed.adapters.content import Content
from woodshed.adapters.naming import diffusers_module
from woodshed.errors import AdapterError
from woodshed.storage import save_tensors

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


def write_diffusers(path: Path, content: Content, *, dtype: torch.dtype = torch.float32) -> int:
    """Write a file; return the number of its tensors.

    Args:
        path: of the file.
        content: LoRA or DoRA; biases are left out.
        dtype: of the factors; norms are float32.

    Raises:
        AdapterError: when norms were written for a player that divides by other ones.
    """
    tensors: dict[str, Tensor] = {}
    for module, change in content.changes.items():
        assert isinstance(change, LowRank), type(change)
        name = diffusers_module(module)
        tensors[f"{name}.lora_A.weight"] = change.a.to(dtype).contiguous()
        tensors[f"{name}.lora_B.weight"] = (change.b * change.scale).to(dtype).contiguous()
        if change.norms is not None:
            if change.norms.are_over_base:
                raise AdapterError("These norms were written for today's ComfyUI; name the base's checkpoint.")
            tensors[f"{name}.lora_magnitude_vector"] = change.norms.values.float().contiguous()
    save_tensors(path, tensors, {"format": "pt", RECIPE_KEY: json.dumps(dict(content.recipe))})
    return len(tensors)
