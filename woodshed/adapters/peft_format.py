"""PEFT folders: what ACE-Step, PEFT itself and most other tools load.

PEFT's weight file does not hold alpha, and tools that do not read the config play at scale 1. So the scale is
multiplied into a factor and the config says alpha = r; a folder that is faithful to the training keeps them apart.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lokr.layer import factorization
from torch import Tensor

from woodshed.adapters.adapter import RECIPE_KEY
from woodshed.adapters.changes import Change, Hadamard, LowRank, Rotation
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.lokr_layout import common_factor, common_rank
from woodshed.adapters.naming import peft_module
from woodshed.adapters.peft_config import CONFIG_NAME, WEIGHTS_NAME
from woodshed.adapters.tensor_files import DIFFUSERS_KEY
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers
from woodshed.storage import save_tensors

Stored = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by module and part, `layers.0.self_attn.q_proj.lora_A.weight`, and the fields of a config."""


def write_peft(folder: Path, content: Content, *, dtype: torch.dtype = torch.float32, is_faithful: bool = False) -> int:
    """Write a PEFT folder; return the number of its tensors.

    Args:
        folder: exists.
        content: one kind of change; biases as they are, not as differences.
        dtype: of the factors; norms and biases stay float32.
        is_faithful: leave scale and ranks as they were trained, for those who train on with PEFT.

    Raises:
        AdapterError: when PEFT cannot express the content.
    """
    if content.bias_differences:
        raise AdapterError("A PEFT folder stores whole biases, which needs the base model's: name its checkpoint.")
    tensors, config = _store(content, is_faithful=is_faithful)
    named = {peft_module(name): value.to(dtype).contiguous() for name, value in tensors.items()}
    named |= {f"{peft_module(module)}.lora_magnitude_vector": value for module, value in _magnitudes(content).items()}
    for name, bias in content.biases.items():
        module = name.removesuffix(".bias")
        inner = ".base_layer" if module in content.changes else ""
        named[f"{peft_module(module)}{inner}.bias"] = bias.float()
    header = {"format": "pt", RECIPE_KEY: json.dumps(dict(content.recipe))}
    if is_faithful:
        header[DIFFUSERS_KEY] = json.dumps(_for_diffusers(config))
    (folder / CONFIG_NAME).write_text(json.dumps(_COMMON | config, indent=1), encoding="utf-8")
    save_tensors(folder / WEIGHTS_NAME, named, header)
    return len(named)


_COMMON = {"peft_type": "", "task_type": None, "base_model_name_or_path": None, "inference_mode": True}
"""The beginning of every config. The rest is as small as can be: older versions of PEFT fail on unknown keys."""


def require_peft_family(content: Content, *, is_faithful: bool = False) -> None:
    """Stop unless PEFT has a family for the content.

    Raises:
        AdapterError: saying which format has.
    """
    if content.family is LowRank:
        return
    if is_faithful:
        raise AdapterError("Only a LoRA or DoRA has a form that is faithful to its training; use --to peft.")
    if content.family is Change:
        raise AdapterError("PEFT cannot mix several kinds of change in one adapter; use --to comfyui.")
    if content.has_norms:
        raise AdapterError("PEFT has no DoRA for this family; use --to comfyui, lycoris or lora.")
    if content.family not in (Kronecker, Hadamard, Rotation):
        raise AdapterError("PEFT cannot store plain weight differences; use --to comfyui or lora.")


def _store(content: Content, *, is_faithful: bool) -> Stored:
    require_peft_family(content, is_faithful=is_faithful)
    if content.family is LowRank:
        return _store_lora(content.changes, content, is_faithful=is_faithful)
    stores: dict[type[Change], Callable[[Any], Stored]] = {
        Kronecker: _store_lokr,
        Hadamard: _store_loha,
        Rotation: _store_oft,
    }
    return stores[content.family](content.changes)


def _magnitudes(content: Content) -> dict[str, Tensor]:
    """Return the norms of a DoRA.

    Raises:
        AdapterError: when they were written for a player that divides by other norms.
    """
    norms = {module: change.norms for module, change in content.changes.items() if change.norms is not None}
    if any(item.are_over_base for item in norms.values()):
        raise AdapterError("These norms were written for today's ComfyUI; to convert them, name the base's checkpoint.")
    return {module: item.values.float().contiguous() for module, item in norms.items()}


def _store_lora(changes: Mapping[str, Any], content: Content, *, is_faithful: bool) -> Stored:
    if is_faithful:
        ranks = {module: change.rank for module, change in changes.items()}
        alphas = {module: change.scale * change.rank for module, change in changes.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    else:
        rank = alpha = max(change.rank for change in changes.values())
        changes = {module: padded(change, rank) for module, change in changes.items()}
        ranks = alphas = dict.fromkeys(changes, rank)
    tensors = {}
    for module, change in changes.items():
        tensors[f"{module}.lora_A.weight"] = change.a
        tensors[f"{module}.lora_B.weight"] = change.b if is_faithful else change.b * change.scale
    return tensors, {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _short(alpha),
        "lora_dropout": 0.0,
        "bias": _bias_mode(content),
        "target_modules": list(changes),
        "use_dora": content.has_norms,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: _short(value) for module, value in alphas.items() if value != alpha},
    }


def padded(change: LowRank, rank: int) -> LowRank:
    """Fill a LoRA up to a rank with zeros, which changes nothing."""
    missing = rank - change.rank
    return replace(change, a=F.pad(change.a, (0, 0, 0, missing)), b=F.pad(change.b, (0, missing)))


def _short(number: float) -> float:
    """Write a whole number without a point: the C++ players read whole numbers only."""
    return int(number) if float(number).is_integer() else number


def _bias_mode(content: Content) -> str:
    if not content.biases:
        return "none"
    own = {f"{module}.bias" for module in content.changes}
    return "lora_only" if set(content.biases) <= own else "all"


def _for_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the copy of a config that diffusers looks for in the header, in its own names."""
    named = {
        **config,
        "target_modules": [original_to_diffusers(name) for name in config["target_modules"]],
        **{
            table: {original_to_diffusers(name): value for name, value in config[table].items()}
            for table in ("rank_pattern", "alpha_pattern")
        },
    }
    kept = ("r", "lora_alpha", "target_modules", "use_dora", "rank_pattern", "alpha_pattern")
    return {f"transformer.{name}": named[name] for name in kept}


def _store_lokr(changes: Mapping[str, Kronecker]) -> Stored:
    """Store factors as PEFT would build them: one split and one rank for all modules, the scale in the first factor."""
    factor, rank = common_factor(changes, factorization), common_rank(changes)
    if factor is None or rank is None:
        raise AdapterError(
            "PEFT cannot build these LoKr shapes from one factor and one rank; use --to lycoris, comfyui or lora."
        )
    tensors = {
        f"{module}.{part}": value
        for module, change in changes.items()
        for part, value in change.with_whole_first(holds_scale=True).parts().items()
    }
    return tensors, {
        "peft_type": "LOKR",
        "r": rank,
        "alpha": rank,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "target_modules": list(changes),
        "decompose_both": False,
        "decompose_factor": factor,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _store_loha(changes: Mapping[str, Hadamard]) -> Stored:
    rank = max(change.rank for change in changes.values())
    tensors = {}
    for module, change in changes.items():
        missing = rank - change.rank
        tensors[f"{module}.hada_w1_a"] = F.pad(change.w1_a * change.scale, (0, missing))
        tensors[f"{module}.hada_w1_b"] = F.pad(change.w1_b, (0, 0, 0, missing))
        tensors[f"{module}.hada_w2_a"] = F.pad(change.w2_a, (0, missing))
        tensors[f"{module}.hada_w2_b"] = F.pad(change.w2_b, (0, 0, 0, missing))
    return tensors, {
        "peft_type": "LOHA",
        "r": rank,
        "alpha": rank,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "target_modules": list(changes),
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _store_oft(changes: Mapping[str, Rotation]) -> Stored:
    sizes, terms = ({getattr(change, name) for change in changes.values()} for name in ("block_size", "terms"))
    if len(sizes) > 1 or len(terms) > 1:
        raise AdapterError(f"PEFT wants one block size for all modules of an OFT; this has {sorted(sizes)}.")
    (size,), (term,) = sizes, terms
    series = {"num_cayley_neumann_terms": term} if term else {}
    return {f"{module}.oft_R.weight": change.skew for module, change in changes.items()}, {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": size,
        "module_dropout": 0.0,
        "target_modules": list(changes),
        "bias": "none",
        "coft": False,
        "block_share": False,
        "use_cayley_neumann": bool(term),
        **series,
    }
