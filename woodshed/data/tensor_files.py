"""Files of tensors: read without executing anything, written whole or not at all."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from woodshed.errors import DataError, UserError
from woodshed.storage import DAMAGE, whole_file


def read_tensors(path: Path, *, mapped: bool = False) -> Any:
    """Read what `torch.save` wrote, on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors on the disk until they are used, for who only wants the words beside them.

    Raises:
        DataError: when it cannot be read, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path.name} is no file of tensors, or only a part of one. Preprocess that song again.")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path.name} cannot be read as tensors ({reason}). Preprocess that song again.") from error


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values.

    Raises:
        UserError: when the disk does not take them.
    """
    packed = io.BytesIO()
    torch.save(content, packed)  # in memory: for a full disk PyTorch has no words that anybody understands
    try:
        with whole_file(path) as building:
            building.write_bytes(packed.getbuffer())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Make room on the disk or choose another folder, and run the "
            "same command again: what is done is kept."
        ) from error
