"""What is in a checkpoint folder: which model, in what format, how large its parts are, and what is missing."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from woodshed.adapters.merge import RECORD
from woodshed.analysis.report import Report, Table, folder_size
from woodshed.errors import CheckpointError, collecting
from woodshed.models.checkpoints import Checkpoint, find_checkpoints, fingerprint, read_checkpoint
from woodshed.models.config import read_json
from woodshed.models.decoder import build_decoder
from woodshed.models.encoders import ConditionEncoder
from woodshed.models.keys import diffusers_to_original
from woodshed.models.load import NULL_CONDITION, PARTS, load_silence
from woodshed.models.weights import StoredTensor, check_tensors, read_headers
from woodshed.sampling.recipes import playback_of

NOT_NEEDED = ("tokenizer", "detokenizer")  # parts that only covers use


def inspect_model(folder: Path) -> Report:
    """Look at one model folder; its weights are not read, only their headers.

    Raises:
        CheckpointError: when config.json or the weight files cannot be read at all.
    """
    checkpoint = read_checkpoint(folder)
    stored = read_headers(checkpoint.weight_files)
    config, playback = checkpoint.config, playback_of(checkpoint)
    facts = {
        "kind": checkpoint.kind,
        **_merge_facts(folder),
        "size": "XL" if checkpoint.is_xl else "2B",
        "published by ACE-Step": checkpoint.is_official,
        "bytes": folder_size(folder),
        "number format": ", ".join(sorted({tensor.dtype for tensor in stored.values()})),
        "weight files": len(checkpoint.weight_files),
        "parameters": _count(stored),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "timesteps in training": f"mu {config.timestep_mu:g}, sigma {config.timestep_sigma:g}",
        "usual playback": f"{playback.steps} steps, shift {playback.shift:g}, guidance {playback.guidance:g}",
    }
    problems = _problems(checkpoint, stored)
    with collecting(problems):
        facts["fingerprint of its conditions"] = fingerprint(checkpoint)[:16]
    return Report("model", folder, facts, (_part_table(stored),), tuple(dict.fromkeys(problems)))


def _merge_facts(folder: Path) -> dict[str, str]:
    """Return what `woodshed merge` has put into a model, as its record says."""
    if not (folder / RECORD).is_file():
        return {}
    with collecting([]):  # a record that is damaged says nothing
        record = read_json(folder / RECORD)
        adapters = record.get("adapters")
        parts = [part for part in adapters if isinstance(part, dict)] if isinstance(adapters, list) else []
        named = [f"{part.get('file')} at {part.get('strength')}" for part in parts]
        return {"merged from": " + ".join([str(record.get("base_model")), *named])}
    return {}


def _count(stored: Mapping[str, StoredTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in stored.values())


def _part_table(stored: Mapping[str, StoredTensor]) -> Table:
    parts = {part.removesuffix("."): {k: v for k, v in stored.items() if k.startswith(part)} for part in PARTS}
    parts[NULL_CONDITION] = {name: tensor for name, tensor in stored.items() if name == NULL_CONDITION}
    rows = []
    for part, tensors in parts.items():
        formats = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
        use = "for covers only" if part in NOT_NEEDED else ""
        rows.append([part, len(tensors), _count(tensors), formats or "missing", use])
    return Table("parts", ("part", "tensors", "parameters", "number format", "use"), rows)


def _problems(checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]) -> list[str]:
    """Return what training or preprocessing would stumble over."""
    problems: list[str] = []
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "decoder": build_decoder(checkpoint.config),
            "encoder": ConditionEncoder(checkpoint.config),
        }
    for part, module in modules.items():
        shapes = {
            NULL_CONDITION if name == NULL_CONDITION else f"{part}.{diffusers_to_original(name)}": tuple(tensor.shape)
            for name, tensor in module.state_dict().items()
        }
        with collecting(problems):
            check_tensors(f"the {part} of {checkpoint.folder}", shapes, stored)
    with collecting(problems):
        load_silence(checkpoint)
    return problems


def inspect_root(root: Path) -> Report:
    """Look at a folder that holds checkpoints.

    Raises:
        CheckpointError: when it holds no usable one.
    """
    found = find_checkpoints(root)
    rows = [
        [model.name, model.kind, "XL" if model.is_xl else "2B", "official" if model.is_official else "fine-tune"]
        for model in found.models
    ]
    notices = [problem for problems in found.unusable.values() for problem in problems]
    for require in (found.require_vae, found.require_text_encoder):
        try:
            require()
        except CheckpointError as error:
            notices += error.problems
    facts = {"models": len(rows), "VAE": found.vae is not None, "text encoder": found.text_encoder is not None}
    table = Table("models", ("name", "kind", "size", "origin"), rows)
    return Report("checkpoints", root, facts, (table,), tuple(notices))
