"""An adapter in another tool's format: converted, written whole, read back and compared."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from woodshed.adapters.adapter import quote_some
from woodshed.adapters.base import BaseWeights
from woodshed.adapters.changes import Hadamard, LowRank
from woodshed.adapters.comfyui_format import fit_for_comfyui, with_norms_over, write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.diffusers_format import (
    DIFFUSERS_LOKR_NAME,
    DIFFUSERS_NAME,
    require_diffusers_lokr,
    write_diffusers,
    write_diffusers_lokr,
)
from woodshed.adapters.faithful import as_trained
from woodshed.adapters.low_rank import as_lora
from woodshed.adapters.lycoris_format import LOKR_NAME, require_lycoris_family, write_lycoris
from woodshed.adapters.peft_config import CONFIG_NAME
from woodshed.adapters.peft_format import require_peft_family, write_peft
from woodshed.adapters.ranks import filling_notices
from woodshed.adapters.saved import SavedAdapter, read_adapter, read_file
from woodshed.adapters.verification import (
    HALF_TOLERANCE,
    TOLERANCE,
    Expected,
    Verification,
    compare,
    refuse_other_names,
)
from woodshed.errors import AdapterError, CheckpointError
from woodshed.models.checkpoints import Checkpoint, choose_model, find_checkpoints
from woodshed.settings.schema import DoraNorms, ExportFormat, ExportSettings
from woodshed.storage import whole_file, whole_folder

FILE_ENDING = ".safetensors"
FOLDER_FORMATS = ("peft", "peft-faithful", "lora")
_FILES = {
    "comfyui": ("{stem}.safetensors", write_comfyui),
    "diffusers": (DIFFUSERS_NAME, write_diffusers),
    "diffusers-lokr": (DIFFUSERS_LOKR_NAME, write_diffusers_lokr),
    "lycoris": (LOKR_NAME, write_lycoris),
}
"""What the file of a format is called in a folder of its own, and who writes it."""
_SINGLE = (CONFIG_NAME, LOKR_NAME, DIFFUSERS_NAME, DIFFUSERS_LOKR_NAME)
"""What says that a folder is that of one adapter."""
NEGLIGIBLE = 1e-6  # of a change; what singular values of float32 leave
_REQUIREMENTS: dict[str, Callable[[Content], None]] = {
    "diffusers-lokr": require_diffusers_lokr,
    "lycoris": require_lycoris_family,
    "peft": require_peft_family,
    "peft-faithful": partial(require_peft_family, is_faithful=True),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NO_BIASES = ("diffusers", "diffusers-lokr", "lora")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path  # the folder or the file
    verification: Verification
    notices: tuple[str, ...]


def export_adapter(source: Path, settings: ExportSettings) -> Exported:
    """Write an adapter in another format, whole or not at all.

    Args:
        source: an adapter that `read_adapter` reads.
        settings: format, output, and the base model, whose weights some conversions need.

    Raises:
        UserError: when the source cannot be read or does not fit the base, when the format cannot express it, when the
            output is taken, or when what was written is not what was meant.
    """
    saved = read_adapter(source)
    if settings.to in _REQUIREMENTS:
        _REQUIREMENTS[settings.to](saved)
    base = BaseWeights(_find_base(saved, settings), saved.recipe)
    if base.is_known and (problems := saved.misfits(base.shapes)):
        raise AdapterError(*problems)
    target = _refuse_taken(settings.output, settings.to)
    content, notices, cut = _convert(saved, settings, base)
    tolerance = TOLERANCE if settings.dtype == "fp32" else HALF_TOLERANCE
    with whole_file(target) if target.suffix == FILE_ENDING else whole_folder(target) as building:
        is_folder = _write(building, content, settings, target.name)
        written = read_adapter(building) if is_folder else read_file(building)
        refuse_other_names(written, content.modules, content.bias_names)
        report = compare(written, _expected(saved, written, base), tolerance=math.inf if cut else tolerance)
        file = target / written.path.name if is_folder else target
    notices += _cut_notice(report, cut) + _reach_notices(content, settings, file)
    return Exported(target, report, tuple(notices))


def _find_base(saved: SavedAdapter, settings: ExportSettings) -> Checkpoint | None:
    """Return the model that the user names, or else the one that the recipe names if it is there.

    Raises:
        CheckpointError: when there is no model of the name that the user gives.
    """
    if settings.model:
        return choose_model(find_checkpoints(settings.checkpoint_dir), settings.model)
    name = saved.recipe.get("base_model")
    if not isinstance(name, str) or not settings.checkpoint_dir.is_dir():
        return None
    try:
        return choose_model(find_checkpoints(settings.checkpoint_dir), name)
    except CheckpointError:
        return None  # it is only a hint; what needs the weights will say so


def _convert(saved: SavedAdapter, settings: ExportSettings, base: BaseWeights) -> tuple[Content, list[str], list[str]]:
    """Return what is to be written, what the user should know, and the modules that are approximated."""
    notices: list[str] = []
    content: Content = saved
    if settings.to != "comfyui":
        content = _with_true_norms(content, base)
    if settings.to in _NO_BIASES and content.bias_names:
        notices.append(f"The {len(content.bias_names)} trained biases are left out: this format has no place for them.")
        content = replace(content, biases={}, bias_differences={})
    content = _convert_biases(content, settings, base)
    cut: list[str] = []
    if settings.to == "lora" or (settings.to == "diffusers" and content.family is not LowRank):
        content, cut = as_lora(
            content, limit=None if settings.max_rank == "auto" else settings.max_rank, weight_of=base.weight
        )
    if settings.to == "comfyui":
        content = fit_for_comfyui(content, settings.dora, base.weight)
        notices += _dora_notice(saved, settings.dora)
    if settings.to == "peft-faithful":
        content = as_trained(content)
    return content, notices, cut


def _with_true_norms(content: Content, base: BaseWeights) -> Content:
    """Undo what was done for ComfyUI to the norms of a file that came from there."""
    changes = {
        module: with_norms_over(change, base.weight(module), base=False)
        if change.norms and change.norms.are_over_base
        else change
        for module, change in content.changes.items()
    }
    return replace(content, changes=changes)


def _convert_biases(content: Content, settings: ExportSettings, base: BaseWeights) -> Content:
    """Return the biases as the format stores them: whole in PEFT, as differences elsewhere."""
    if settings.to in FOLDER_FORMATS and content.bias_differences:
        whole = {name: content.bias(name, base.bias(name)) for name in content.bias_differences}
        return replace(content, biases={**content.biases, **whole}, bias_differences={})
    if settings.to not in FOLDER_FORMATS and content.biases:
        differences = {name: content.biases[name] - base.bias(name) for name in content.biases}
        return replace(content, biases={}, bias_differences={**content.bias_differences, **differences})
    return content


def _refuse_taken(output: Path, to: ExportFormat) -> Path:
    """Return the folder or file to write.

    Raises:
        AdapterError: when it is there already, is of the wrong kind, or lies beside an adapter: ACE-Step and diffusers
            pick the first file they find in a folder.
    """
    is_file = output.suffix == FILE_ENDING
    if is_file and to in FOLDER_FORMATS:
        raise AdapterError(f"{to} is a folder with a config and a weight file; give --output a name without ending.")
    if output.exists():
        raise AdapterError(f"{output} exists already. Choose another --output, or delete it first.")
    found = next((name for name in _SINGLE if (output.parent / name).exists()), None)
    if found is not None:
        raise AdapterError(
            f"{output.parent} holds an adapter ({found}), and a second one there would hide it from players. "
            "Choose another folder."
        )
    return output


def _write(building: Path, content: Content, settings: ExportSettings, name: str) -> bool:
    """Write the files of a format into a folder, or one file at a path; tell whether it was a folder."""
    if settings.to in FOLDER_FORMATS:
        write_peft(building, content, dtype=DTYPES[settings.dtype], is_faithful=settings.to == "peft-faithful")
        return True
    file_name, write = _FILES[settings.to]
    is_folder = building.is_dir()
    file = building / file_name.format(stem=name) if is_folder else building
    write(file, content, dtype=DTYPES[settings.dtype])
    return is_folder


def _expected(saved: SavedAdapter, written: SavedAdapter, base: BaseWeights) -> Iterator[Expected]:
    """Yield what every module and bias should come to.

    Without the base's weights, random ones stand in for them: formulas that agree on those agree on any.
    """
    generator = torch.Generator().manual_seed(0)
    for module, change in saved.changes.items():
        weight = base.weight(module) if base.is_known else _stand_in(change.shape, generator)
        weight = weight.double()
        yield Expected(
            module, weight, change.delta(weight), written.delta(module, weight), has_rounding=change.needs_weight
        )
    for name in written.bias_names:
        stored = (dict(saved.biases) | dict(saved.bias_differences))[name]
        bias = base.bias(name).double() if base.is_known else torch.zeros_like(stored).double()
        yield Expected(name, bias, saved.bias(name, bias) - bias, written.bias(name, bias) - bias, has_rounding=True)


def _stand_in(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    rows, columns = shape
    return torch.randn(rows or columns, columns, generator=generator) / math.sqrt(columns)


def _cut_notice(report: Verification, cut: list[str]) -> list[str]:
    if not cut or report.residual < NEGLIGIBLE:
        return []
    return [
        f"This is an approximation: {quote_some(cut)} became LoRA by cutting small singular values, and "
        f"{100 * report.residual:.2g} % of the change is lost. A larger --max-rank loses less."
    ]


def _dora_notice(saved: SavedAdapter, dora: DoraNorms) -> list[str]:
    if not saved.has_norms:
        return []
    return {
        "today": [
            "The norms are written for the ComfyUI of today, which divides by the wrong ones. When its fix is out, "
            "export again with --dora true; --dora diff is right in both, and large."
        ],
        "true": ["The norms are the true ones: right in ComfyUI once its fix is out, wrong before."],
        "diff": [],
    }[dora]


def _reach_notices(content: Content, settings: ExportSettings, file: Path) -> list[str]:
    """Say which players, of those that people would expect, cannot play the file."""
    said: list[str] = []
    if settings.to in ("peft", "lora"):
        ranks = (change.rank for change in content.changes.values() if isinstance(change, LowRank | Hadamard))
        said += filling_notices(ranks)
    if settings.to in ("peft", "lora") and not any(name.endswith(("q_proj", "k_proj")) for name in content.modules):
        said.append("diffusers will ignore this folder: without q_proj or k_proj it needs --to diffusers.")
    if settings.to == "diffusers-lokr":
        said.append(
            f"Load it with pipe.transformer.load_lora_adapter({str(file)!r}); the pipeline itself reads no LoKr."
        )
    if settings.to in ("peft", "peft-faithful") and content.has_norms:
        said.append("acestep.cpp ignores the norms of a DoRA in a PEFT folder; --to lora makes what it can play.")
    if settings.to == "peft-faithful":
        said.append("ComfyUI does not read the scale of this folder; for players use --to peft or comfyui.")
    return said
