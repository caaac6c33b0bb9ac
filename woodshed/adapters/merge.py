"""Base and adapters as one model folder in the original layout.

Shards are copied, and the changed tensors are rewritten in their places, one in memory at a time: names, shapes, number
formats and every other byte stay as they were.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from woodshed import __version__
from woodshed.adapters.adapter import quote_some
from woodshed.adapters.base import PART, BaseWeights
from woodshed.adapters.saved import SavedAdapter, read_adapter
from woodshed.errors import AdapterError, UserError, collecting
from woodshed.models.checkpoints import Checkpoint
from woodshed.models.weights import FLOAT_DTYPES, StoredTensor
from woodshed.storage import whole_folder

RECORD = "woodshed_merge.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """One adapter of a merge."""

    saved: SavedAdapter
    strength: float


@dataclass(frozen=True)
class Merged:
    """What was written."""

    folder: Path
    changed: int  # tensors
    copied: int  # tensors that are as they were
    kept: float  # of the whole change, what is left after rounding to the model's number format; 1 is all

    def __str__(self) -> str:
        """Return one sentence for people."""
        return (
            f"Verified: {self.changed} tensors changed and read back, {self.copied} as they were; after rounding, "
            f"{self.kept:.6f} of the change is left."
        )


def read_parts(paths: Sequence[Path], strengths: Sequence[float], checkpoint: Checkpoint) -> list[Part]:
    """Read adapters and see whether they fit a model.

    Args:
        paths: of the adapters.
        strengths: one for each, or one for all.
        checkpoint: the model.

    Raises:
        UserError: with everything that is wrong.
    """
    problems: list[str] = []
    if len(strengths) not in (1, len(paths)):
        problems.append(f"There are {len(paths)} adapters and {len(strengths)} strengths; give one for each, or one.")
    base = BaseWeights(checkpoint)
    found: list[SavedAdapter] = []
    for path in paths:
        with collecting(problems):
            saved = read_adapter(path)
            problems += saved.misfits(base.shapes)
            found.append(saved)
    if problems:
        raise UserError(*problems)
    each = strengths if len(strengths) == len(paths) else [strengths[0]] * len(paths)
    return [Part(saved, strength) for saved, strength in zip(found, each, strict=True)]


def merge_adapters(checkpoint: Checkpoint, parts: Sequence[Part], output: Path) -> Merged:
    """Write a model folder with the adapters in its weights, whole or not at all.

    Args:
        checkpoint: the base model.
        parts: fit it.
        output: the folder to be.

    Raises:
        UserError: when the folder exists, the disk is too small, or what was written is not what was meant.
    """
    _refuse_place(checkpoint, output)
    stored = BaseWeights(checkpoint).stored
    names = _changed_names(parts)
    odd = [name for name in names if stored[name].dtype not in FLOAT_DTYPES]
    if odd:
        raise AdapterError(f"{checkpoint.folder} stores {quote_some(odd)} in a format that cannot be changed in place.")
    met = meant = 0.0
    with whole_folder(output) as building:
        _copy(checkpoint.folder, building)
        for name in names:
            base = stored[name].read(dtype=torch.float64)
            change = sum(
                (part.strength * _difference(part.saved, name, base) for part in parts), torch.zeros_like(base)
            )
            value = (base + change).to(_DTYPES[stored[name].dtype])
            if not value.isfinite().all():
                raise AdapterError(f"{name} becomes too large for the model's number format; use a smaller --strength.")
            _rewrite(building / stored[name].file.name, stored[name].name, value)
            _refuse_other(building, stored[name], value)
            met += ((value.double() - base) * change).sum().item()
            meant += change.square().sum().item()
        record = {
            "woodshed": __version__,
            "base_model": checkpoint.name,
            "adapters": [
                {
                    "file": "/".join(part.saved.path.parts[-3:]),
                    "strength": part.strength,
                    "recipe": dict(part.saved.recipe),
                }
                for part in parts
            ],
        }
        (building / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return Merged(output, len(names), len(stored) - len(names), met / meant if meant else 1.0)


def _refuse_place(checkpoint: Checkpoint, output: Path) -> None:
    if output.exists():
        raise UserError(f"{output} exists already. Choose another --output.")
    if checkpoint.folder.resolve() in output.resolve().parents:
        raise UserError(f"{output} lies in the model that is to be copied. Choose an --output beside it.")
    place = output.absolute().parent
    while not place.exists():
        place = place.parent
    size = sum(path.stat().st_size for path in checkpoint.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(f"{place} has {free / 1e9:.1f} GB left, and the model needs {size / 1e9:.1f} GB.")


def _changed_names(parts: Sequence[Part]) -> list[str]:
    """Return the names of all tensors that change, in the decoder, each once."""
    names = [f"{module}.weight" for part in parts for module in part.saved.modules]
    names += [name for part in parts for name in part.saved.bias_names]
    return list(dict.fromkeys(names))


def _difference(saved: SavedAdapter, name: str, base: Tensor) -> Tensor:
    """Return what an adapter adds to a tensor of the base; zeros where it does nothing."""
    module = name.removesuffix(".weight")
    if name in saved.bias_names:
        return saved.bias(name, base) - base
    return saved.delta(module, base) if module in saved.changes else torch.zeros_like(base)


def _copy(folder: Path, target: Path) -> None:
    """Copy everything in a model folder, what links lead to instead of the links."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(path, target / path.name)


def _rewrite(path: Path, name: str, value: Tensor) -> None:
    """Put new bytes in the place of a tensor of a safetensors file."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
        content = value.contiguous().view(torch.uint8).numpy().tobytes()
        assert end - begin == len(content), f"{name} has {end - begin} bytes in {path}, not {len(content)}"
        file.seek(8 + length + begin)
        file.write(content)


def _refuse_other(building: Path, source: StoredTensor, value: Tensor) -> None:
    """Read a tensor back and compare it."""
    written = StoredTensor(building / source.file.name, source.name, source.shape, source.dtype)
    if not torch.equal(written.read(dtype=value.dtype), value):
        raise AdapterError(f"{written.file} does not hold what was written into {source.name.removeprefix(PART)}.")
