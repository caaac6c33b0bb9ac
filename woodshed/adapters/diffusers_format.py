"""diffusers' files: a LoRA or DoRA for its pipeline, a LoKr for its decoder; in its names, the scale multiplied in.

`pipe.load_lora_weights` reads names with `lora` in them and nothing else: no alpha, no other family. The decoder's own
`pipe.transformer.load_lora_adapter` reads a LoKr too and lets PEFT build it. Trained biases have no place in either.
"""

import json
from pathlib import Path

import torch
from peft.tuners.lokr.layer import factorization
from torch import Tensor

from woodshed.adapters.adapter import RECIPE_KEY
from woodshed.adapters.changes import LowRank
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.lokr_layout import common_factor, is_built
from woodshed.adapters.naming import diffusers_module
from woodshed.errors import AdapterError
from woodshed.storage import save_tensors

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
DIFFUSERS_LOKR_NAME = "pytorch_lokr_weights.safetensors"


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


def write_diffusers_lokr(path: Path, content: Content, *, dtype: torch.dtype = torch.float32) -> int:
    """Write a file; return the number of its tensors.

    Args:
        path: of the file.
        content: a LoKr; biases are left out.
        dtype: of the factors.

    Raises:
        AdapterError: when it is of another family, or has shapes or norms that diffusers cannot build.
    """
    require_diffusers_lokr(content)
    changes = {module: change for module, change in content.changes.items() if isinstance(change, Kronecker)}
    # As diffusers infers them: a factor from the rows, a rank for each module.
    candidates = [*sorted({change.splits[0][0] for change in changes.values()}), -1]
    is_fit = all(change.dim is None or is_built(change, change.dim) for change in changes.values())
    if not is_fit or common_factor(changes, factorization, candidates) is None:
        raise AdapterError("diffusers cannot build these LoKr shapes from one factor; use --to diffusers.")
    tensors = {
        f"{diffusers_module(module)}.{part}": value.to(dtype).contiguous()
        for module, change in changes.items()
        for part, value in change.with_whole_first(holds_scale=True).parts().items()
    }
    save_tensors(path, tensors, {"format": "pt", RECIPE_KEY: json.dumps(dict(content.recipe))})
    return len(tensors)


def require_diffusers_lokr(content: Content) -> None:
    """Stop unless diffusers' decoder has a family for the content.

    Raises:
        AdapterError: saying which format has.
    """
    if content.family is not Kronecker:
        raise AdapterError("diffusers-lokr is for a LoKr; use --to diffusers for this adapter.")
    if content.has_norms:
        raise AdapterError("diffusers has no LoKr with DoRA; use --to diffusers, which makes a LoRA of it.")
