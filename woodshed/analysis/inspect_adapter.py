"""What is in an adapter: its family and size, what made it, and how far it moves each layer."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woodshed.adapters.base import BaseWeights
from woodshed.adapters.changes import Hadamard, LowRank, Rotation
from woodshed.adapters.files import load_adapter
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.saved import SavedAdapter, read_adapter
from woodshed.analysis.report import Report, Table
from woodshed.errors import AdapterError, collecting
from woodshed.models.checkpoints import Checkpoint
from woodshed.models.decoder import Decoder
from woodshed.models.load import load_decoder
from woodshed.models.weights import StoredTensor, read_headers
from woodshed.sampling.generate import silent_context
from woodshed.training.checkpoint import read_resume_point

FAMILIES = {"lora_": "LoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT"}  # by what tensors are called
DECOMPOSED = ("dora_scale", "magnitude_vector")
NEEDS_WEIGHTS = (*DECOMPOSED, "oft_")  # their difference depends on the model's own weights
ROUNDING = 1e-6  # of a weight; an untrained weight decomposition differs from it by as much
BLOCKS = ("self_attn", "cross_attn", "mlp")
OTHER = "other"
FRAMES, TOKENS, LEVEL, SEED = 64, 16, 0.5, 0  # of the fixed input that an adapter is tried on
_PLACE = re.compile(r"layers[._](\d+)[._](" + "|".join(BLOCKS) + r")[._]")


@dataclass(frozen=True)
class Stage:
    """A model to try an adapter on."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype


def inspect_adapter(path: Path, stage: Stage | None) -> Report:
    """Read an adapter, and with a model compare what that computes with and without it.

    Raises:
        AdapterError: when there is none, it is damaged, or it does not fit the model.
    """
    saved = read_adapter(path)
    if stage is not None and (problems := saved.misfits(BaseWeights(stage.checkpoint).shapes)):
        raise AdapterError(*problems)
    tensors = read_headers([saved.path])
    notices: list[str] = []
    needs_weights = any(word in name for name in tensors for word in NEEDS_WEIGHTS)
    facts = {**_file_facts(saved, tensors), **_recipe_facts(saved.recipe), **_resume_facts(path, notices)}
    tables: tuple[Table, ...] = ()
    if stage is None and needs_weights:
        notices.append(
            "How far it moves each layer depends on the model's weights: add --checkpoint-dir and --model to see it."
        )
    else:
        norms = _difference_norms(saved, None if stage is None else stage.checkpoint)
        facts["changes anything"] = any(difference > ROUNDING * weight for difference, weight in norms.values())
        tables = (_layer_table(norms),)
    if stage is not None:
        facts |= _trial(path, stage)
    if not saved.recipe:
        notices.append("It carries no recipe of Woodshed, so it does not say what it was trained on or how to play it.")
    return Report("adapter", path, facts, tables, tuple(notices))


def _file_facts(saved: SavedAdapter, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    names = " ".join(tensors)
    family = " and ".join(word for mark, word in FAMILIES.items() if mark in names) or "weight differences"
    if any(mark in names for mark in DECOMPOSED):
        family += " with weight decomposition (DoRA)"
    facts: dict[str, Any] = {
        "family": family,
        "file": saved.path.name,
        "bytes": saved.path.stat().st_size,
        "modules": len(saved.modules),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values() if tensor.shape),
        "tensors": len(tensors),
        "number format": ", ".join(sorted({tensor.dtype for tensor in tensors.values()})),
    }
    return facts | _size_facts(saved)


def _size_facts(saved: SavedAdapter) -> dict[str, Any]:
    """Return the numbers that a family is built from, one where all modules agree."""
    changes = saved.changes.values()
    found: dict[str, set[int]] = {
        "rank": {change.rank for change in changes if isinstance(change, LowRank | Hadamard)},
        "rank of the second factor": {change.dim for change in changes if isinstance(change, Kronecker) and change.dim},
        "block size": {change.block_size for change in changes if isinstance(change, Rotation)},
    }
    facts: dict[str, Any] = {
        name: min(sizes) if len(sizes) == 1 else sorted(sizes) for name, sizes in found.items() if sizes
    }
    whole = sum(isinstance(change, Kronecker) and change.dim is None for change in changes)
    if whole:
        facts["whole second factors"] = whole
    if saved.bias_names:
        facts["trained biases"] = len(saved.bias_names)
    return facts


def _recipe_facts(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what made the adapter; whatever else stands in the recipe of a file is left out."""
    names = {
        "base_model": "trained on",
        "custom_tag": "trigger tag",
        "tag_position": "tag position",
        "num_inference_steps": "steps",
        "shift": "shift",
        "songs": "songs",
        "epochs": "epochs",
        "averaged_epochs": "mean of the epochs",
        "steps": "optimizer steps",
        "woodshed": "made by Woodshed",
        "settings": "settings",
    }
    if not recipe.get("custom_tag"):
        del names["tag_position"]
    return {title: recipe[name] for name, title in names.items() if recipe.get(name) not in (None, "")}


def _resume_facts(path: Path, notices: list[str]) -> dict[str, Any]:
    """Return where a resume from this folder would go on, if it is a checkpoint."""
    if not (path / "resume" / "state.json").is_file():
        return {}
    with collecting(notices):
        position = read_resume_point(path).position
        return {"resumes at": f"epoch {position.epoch}, after step {position.step}"}
    return {}


def _difference_norms(saved: SavedAdapter, checkpoint: Checkpoint | None) -> dict[str, tuple[float, float]]:
    """Return for each module the norm of its weight difference, and that of the weight (0 without a model)."""
    base = BaseWeights(checkpoint)
    norms = {}
    for module in saved.modules:
        weight = base.weight(module) if base.is_known else torch.zeros(saved.shape(module))
        norms[module] = (saved.delta(module, weight).norm().item(), weight.norm().item())
    return norms


def _layer_table(norms: Mapping[str, tuple[float, float]]) -> Table:
    """Return the norm of each layer's difference by block; in percent of the weights' norm where those are known."""
    has_weights = any(weight for _, weight in norms.values())
    squares: dict[str, dict[str, list[float]]] = {}
    for module, (difference, weight) in norms.items():
        match = _PLACE.search(module)
        layer, block = (match[1], match[2]) if match else (OTHER, OTHER)
        for name in (block, "all"):
            sums = squares.setdefault(layer, {}).setdefault(name, [0.0, 0.0])
            sums[0] += difference**2
            sums[1] += weight**2

    def cell(sums: list[float] | None) -> float | None:
        if sums is None:
            return None
        return 100 * math.sqrt(sums[0] / sums[1]) if has_weights and sums[1] else math.sqrt(sums[0])

    columns = (*BLOCKS, "all")
    order = sorted(squares, key=lambda layer: (layer == OTHER, int(layer) if layer != OTHER else 0))
    rows = [[layer, *(cell(squares[layer].get(column)) for column in columns)] for layer in order]
    title = "size of the change, % of the weights" if has_weights else "size of the change"
    return Table(title, ("layer", *columns), rows)


@torch.no_grad()
def _trial(path: Path, stage: Stage) -> dict[str, Any]:
    """Return how far the adapter moves the velocity that a model computes for a fixed input."""
    decoder = load_decoder(stage.checkpoint, dtype=stage.dtype, device=stage.device)
    without = _velocity(decoder, stage)
    load_adapter(decoder, path)
    change = ((_velocity(decoder, stage) - without).norm() / without.norm()).item()
    return {"tried on": stage.checkpoint.name, "moves the velocity by": f"{change:.2%}", "is live": change > 0}


def _velocity(decoder: Decoder, stage: Stage) -> Tensor:
    config = stage.checkpoint.config
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, FRAMES, config.latent_channels, generator=generator).to(stage.device)
    conditions = torch.randn(1, TOKENS, config.condition_width, generator=generator).to(stage.device)
    t = torch.full((1,), LEVEL, device=stage.device)
    with torch.autocast(stage.device.type, dtype=stage.dtype, enabled=stage.dtype != torch.float32):
        velocity: Tensor = decoder(
            noise,
            timestep=t,
            timestep_r=t,
            encoder_hidden_states=conditions,
            context_latents=silent_context(stage.checkpoint, FRAMES).to(stage.device),
        ).sample
    return velocity.float()
