"""LyCORIS files: what ACE-Step, ComfyUI, the C++ engines and LyCORIS itself read of a LoKr, and LyCORIS of the rest.

ACE-Step builds a LoKr on every linear layer with the settings in the header and then fills in the tensors. So the
header must be true, and it says no scalar: with one, the layers that are not in the file would keep random weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lycoris.functional.general import factorization
from torch import Tensor

from woodshed.adapters.adapter import RECIPE_KEY
from woodshed.adapters.changes import Change, Difference, Hadamard, LowRank, Rotation
from woodshed.adapters.comfyui_format import stored_parts
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.lokr_layout import common_factor, common_rank, usual_factors
from woodshed.adapters.naming import comfyui_module, lycoris_module
from woodshed.adapters.tensor_files import LOKR_KEY
from woodshed.errors import AdapterError
from woodshed.storage import save_tensors

LOKR_NAME = "lokr_weights.safetensors"
_ALGORITHMS: dict[type[Change], str] = {Kronecker: "lokr", Hadamard: "loha", LowRank: "lora"}


def write_lycoris(path: Path, content: Content, *, dtype: torch.dtype = torch.float32) -> int:
    """Write a file; return the number of its tensors.

    Args:
        path: of the file.
        content: one kind of change; biases as differences.
        dtype: of the factors; alpha and norms are float32.

    Raises:
        AdapterError: when the format cannot express the content.
    """
    if content.biases:
        raise AdapterError("A LyCORIS file stores differences of biases, which needs the base: name its checkpoint.")
    require_lycoris_family(content)
    if any(change.norms and change.norms.are_over_base for change in content.changes.values()):
        raise AdapterError("These norms were written for today's ComfyUI; to convert them, name the base's checkpoint.")
    header = {"format": "lycoris", "algo": _ALGORITHMS[content.family], RECIPE_KEY: json.dumps(dict(content.recipe))}
    config: Mapping[str, Any] = {}
    if content.family is Kronecker:
        config = _lokr_config(content.changes, content.lokr_config)
        header[LOKR_KEY] = json.dumps(dict(config))
    tensors: dict[str, Tensor] = {}
    for module, change in content.changes.items():
        parts = stored_parts(change, dtype)
        if config:  # also where both factors are whole: the C++ engines want one and compare it with the dimension
            parts.setdefault("alpha", torch.tensor(float(config["linear_dim"])))
        tensors |= {f"{lycoris_module(module)}.{part}": value for part, value in parts.items()}
    for name, value in content.bias_differences.items():
        tensors[f"{comfyui_module(name.removesuffix('.bias'))}.diff_b"] = value.float()
    save_tensors(path, tensors, header)
    return len(tensors)


def require_lycoris_family(content: Content) -> None:
    """Stop unless LyCORIS has a family for the content.

    Raises:
        AdapterError: saying which format has.
    """
    if content.family in (Change, Rotation, Difference):
        raise AdapterError("A LyCORIS file holds LoKr, LoHa or LoRA; use --to comfyui for this adapter.")


def _lokr_config(changes: Mapping[str, Any], hint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which ACE-Step rebuilds the modules that a file's tensors fit.

    Args:
        changes: by module.
        hint: what the adapter was trained with, or what a file says of that: kept where it gives these shapes.

    Raises:
        AdapterError: when one dimension, one alpha and one factor for all modules cannot.
    """
    said = {name: hint.get(name) for name in ("factor", "linear_dim")}
    known = {name: value for name, value in said.items() if type(value) is int and (value > 0 or value == -1)}
    factors = [*([known["factor"]] if "factor" in known else []), *usual_factors(changes)]
    factor, dim = common_factor(changes, factorization, factors), common_rank(changes, known.get("linear_dim"))
    scales = {change.scale for change in changes.values() if change.dim}
    norms = {change.norms is not None for change in changes.values()}
    if factor is None or dim is None or len(scales) > 1 or len(norms) > 1:
        raise AdapterError(
            "ACE-Step rebuilds a LoKr from one dimension, one alpha and one factor, and this one has several or "
            "others. Use --to comfyui or lora."
        )
    return {
        "linear_dim": dim,
        "linear_alpha": (scales.pop() if scales else 1.0) * dim,
        "factor": factor,
        "decompose_both": False,
        "use_tucker": False,
        "use_scalar": False,
        "weight_decompose": norms == {True},
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in changes}),
        "full_matrix": False,
        "bypass_mode": False,  # older LyCORIS forgets the scale in it
        "rs_lora": False,
        "unbalanced_factorization": False,
    }
