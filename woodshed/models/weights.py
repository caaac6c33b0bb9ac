"""Safetensors files: what is in them, and one tensor at a time out of them.

Nothing here holds more than one tensor beside what the caller keeps: a file is opened for every single tensor, because
an open file keeps every page that was read in the process's memory (20 GB for the float32 shards of XL).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from woodshed.errors import CheckpointError

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MOST_NAMED = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known by the file's header alone."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: "BF16"

    @property
    def is_vector(self) -> bool:
        """Whether at most one dimension is longer than one."""
        return sum(size > 1 for size in self.shape) <= 1

    def read(self, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Return a copy that the file does not back."""
        with safe_open(self.file, framework="pt") as opened:
            stored: Tensor = opened.get_tensor(self.name)
            return stored.to(device=device, dtype=dtype, copy=True)


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return every tensor of the files by name, reading only their headers.

    Raises:
        CheckpointError: for every file that is missing, cut short or no safetensors file.
    """
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - the handle is no mapping
                    entry = opened.get_slice(name)
                    tensors[name] = StoredTensor(file, name, tuple(entry.get_shape()), entry.get_dtype())
        except (SafetensorError, OSError) as error:
            problems.append(f"{file} cannot be read ({error}). It is probably cut short: download it again.")
    if problems:
        raise CheckpointError(*problems)
    return tensors


def check_tensors(
    title: str,
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredTensor],
    unexpected: Iterable[str] = (),
) -> None:
    """Refuse a file that does not hold exactly what the model needs.

    Args:
        title: what is being loaded and from where, for the message: "the decoder of /models/acestep-v15-base".
        expected: name in the file -> shape.
        stored: what the files hold.
        unexpected: names in the files that nothing can account for.

    Raises:
        CheckpointError: naming missing, unexpected, wrong-shaped and non-float tensors.
    """
    present = {name: (shape, stored[name]) for name, shape in expected.items() if name in stored}
    found: dict[str, list[str]] = {
        "is missing|are missing": [name for name in expected if name not in stored],
        "is unexpected|are unexpected": list(unexpected),
        "has another shape than config.json says|have other shapes than config.json says": [
            f"{name} {list(tensor.shape)} instead of {list(shape)}"
            for name, (shape, tensor) in present.items()
            if tensor.shape != shape
        ],
        "holds no floating-point numbers|hold no floating-point numbers": [
            f"{name} ({tensor.dtype})" for name, (_, tensor) in present.items() if tensor.dtype not in FLOAT_DTYPES
        ],
    }
    problems = [_tensor_problem(title, what, names) for what, names in found.items() if names]
    if problems:
        raise CheckpointError(*problems)


def _tensor_problem(title: str, what: str, names: list[str]) -> str:
    one, many = what.split("|")
    count = f"1 tensor {one}" if len(names) == 1 else f"{len(names)} tensors {many}"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"In {title}, {count}: {', '.join(names[:MOST_NAMED])}{more}."


def fill_module(
    module: nn.Module, sources: Mapping[str, StoredTensor], *, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Give a module on the meta device its weights, one tensor at a time, and freeze it in eval mode.

    Args:
        module: built under `torch.device("meta")`.
        sources: the module's own tensor names -> where each lies; all of them, checked by `check_tensors`.
    """
    state = {name: source.read(dtype=dtype, device=device) for name, source in sources.items()}
    module.load_state_dict(state, assign=True, strict=True)
    module.requires_grad_(requires_grad=False).eval()
