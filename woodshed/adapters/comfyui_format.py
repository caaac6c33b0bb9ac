"""ComfyUI's file: one safetensors file in which alpha stands beside the factors of every module.

The C++ engines read it too, where the family is one they know: alpha is therefore float32 without dimensions.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from woodshed.adapters.adapter import RECIPE_KEY
from woodshed.adapters.changes import Change, Difference, Hadamard, LowRank, Norms
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.naming import comfyui_module
from woodshed.adapters.tensor_files import CONVENTION
from woodshed.errors import AdapterError
from woodshed.settings.schema import DoraNorms
from woodshed.storage import save_tensors


def fit_for_comfyui(content: Content, dora: DoraNorms, weight_of: Callable[[str], Tensor]) -> Content:
    """Return what ComfyUI can play: rotations as differences, norms as it divides by them.

    Args:
        content: any.
        dora: how norms are written. today: for the ComfyUI of 2026, which divides by the norms of the base weight;
            true: as every other player reads them, and ComfyUI once its open fix is in; diff: as whole differences.
        weight_of: returns the base weight of a module, or raises an AdapterError that says why it is needed.
    """
    return replace(content, changes={module: _fit(module, content, dora, weight_of) for module in content.changes})


def _fit(module: str, content: Content, dora: DoraNorms, weight_of: Callable[[str], Tensor]) -> Change:
    change = content.changes[module]
    if not isinstance(change, LowRank | Kronecker | Hadamard | Difference) or (change.norms and dora == "diff"):
        return Difference(change.delta(weight_of(module).double()).float())
    if change.norms is None or change.norms.are_over_base == (dora == "today"):
        return change
    return with_norms_over(change, weight_of(module), base=dora == "today")


def with_norms_over(change: Change, weight: Tensor, *, base: bool) -> Change:
    """Return the same change with norms for a player that divides by the base weight's, or by the changed one's."""
    assert change.norms is not None
    weight = weight.double()
    old, new = weight, weight + change.product(weight)
    ratio = old.norm(dim=1) / new.norm(dim=1)
    values = change.norms.values.double() * (ratio if base else 1 / ratio)
    return replace(change, norms=Norms(values.float(), are_over_base=base))


def write_comfyui(path: Path, content: Content, *, dtype: torch.dtype = torch.float32) -> int:
    """Write a file; return the number of its tensors.

    Args:
        path: of the file.
        content: as `fit_for_comfyui` returns it; biases as differences.
        dtype: of the factors; alpha, norms and biases are float32.

    Raises:
        AdapterError: when whole biases are given, of which only the base model knows the difference.
    """
    if content.biases:
        raise AdapterError("ComfyUI's file stores differences of biases, which needs the base: name its checkpoint.")
    tensors: dict[str, Tensor] = {}
    for module, change in content.changes.items():
        for part, value in stored_parts(change, dtype).items():
            tensors[f"{comfyui_module(module)}.{part}"] = value
    for name, value in content.bias_differences.items():
        tensors[f"{comfyui_module(name.removesuffix('.bias'))}.diff_b"] = value.float()
    over_base = any(change.norms and change.norms.are_over_base for change in content.changes.values())
    recipe = {**content.recipe, **({CONVENTION: True} if over_base else {})}
    save_tensors(path, tensors, {"format": "pt", RECIPE_KEY: json.dumps(recipe)})
    return len(tensors)


def stored_parts(change: Change, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a change's tensors as ComfyUI and LyCORIS name them."""
    parts = {name: value.to(dtype).contiguous() for name, value in _factors(change).items()}
    scale, rank = _strength(change)
    if rank:
        parts["alpha"] = torch.tensor(scale * rank, dtype=torch.float32)
    if change.norms is not None:
        parts["dora_scale"] = change.norms.values.float()[:, None].contiguous()
    return parts


def _factors(change: Change) -> dict[str, Tensor]:
    if isinstance(change, LowRank):
        return {"lora_down.weight": change.a, "lora_up.weight": change.b}
    if isinstance(change, Hadamard):
        return {f"hada_{name}": getattr(change, name) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    if isinstance(change, Kronecker):
        return change.with_whole_first().parts()
    assert isinstance(change, Difference), type(change)
    return {"diff": change.values}


def _strength(change: Change) -> tuple[float, int]:
    """Return scale and rank; rank 0 where the format has no alpha because nothing is divided."""
    if isinstance(change, LowRank | Hadamard):
        return change.scale, change.rank
    if isinstance(change, Kronecker) and change.dim:
        return change.scale, change.dim
    return 1.0, 0
