"""Files and folders that appear whole or not at all."""

import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DAMAGE = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError),
    *(AttributeError, AssertionError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error),
)
"""What PyTorch raises for a file that is not what it expects; a single wrong byte can lead to any of them."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` to write into; on success it takes that name, else it vanishes.

    An older folder of that name is replaced, and is there until the new one is complete. Everything is flushed to
    the disk before the rename, so that a power cut leaves the old or the new folder and nothing between.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}.writing")
    outgoing = folder.with_name(f".{folder.name}.outgoing")
    _put_back(outgoing, folder)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        for path in sorted(building.rglob("*"), reverse=True):  # what is in a folder before the folder
            _flush_folder(path) if path.is_dir() else _flush(path)
        _flush_folder(building)
        if folder.exists():
            folder.rename(outgoing)
        building.rename(folder)
        _flush_folder(folder.parent)
    finally:
        _put_back(outgoing, folder)
        shutil.rmtree(building, ignore_errors=True)


def _put_back(outgoing: Path, folder: Path) -> None:
    """Undo a replacement that stopped between its two renames, or drop the old folder when the new one is in place."""
    if outgoing.exists() and not folder.exists():
        outgoing.rename(folder)
    shutil.rmtree(outgoing, ignore_errors=True)


def drop_folder(folder: Path) -> None:
    """Delete a folder so that whoever looks in between sees all of it or nothing."""
    dropped = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(dropped, ignore_errors=True)
    folder.rename(dropped)
    shutil.rmtree(dropped, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Undo what a killed process left half done in a folder: replacements, writings and deletions."""
    for outgoing in folder.glob(".*.outgoing"):
        _put_back(outgoing, folder / outgoing.name[1 : -len(".outgoing")])
    for leftover in (*folder.glob(".*.writing"), *folder.glob(".*.dropped")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success it takes that name, else it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.writing")
    try:
        yield building
        _flush(building)
        building.replace(path)
        _flush_folder(path.parent)
    finally:
        building.unlink(missing_ok=True)


def unwritable(path: Path) -> list[str]:
    """Return why a file cannot be written there, as sentences, without writing anything."""
    problems = [f"The output {path} is a folder. Name a file in it."] if path.is_dir() else []
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.append(f"The output {path} cannot be written: {place} is no folder that you may write to.")
    return problems


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with whole_file(path) as building:
        building.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder; Windows cannot and needs not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, str]) -> str:
    """Write a safetensors file whose bytes depend on its content alone; return their SHA-256 digest.

    The library writes the header's entries in a random order, so that two files of the same content differ; here they
    are sorted.
    """
    from safetensors.torch import save

    blob = save(dict(tensors), dict(header))
    start = 8 + int.from_bytes(blob[:8], "little")
    entries = json.loads(blob[8:start])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    head = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # the format aligns tensors to 8 bytes
    return write_bytes(path, len(head).to_bytes(8, "little") + head, memoryview(blob)[start:])


def write_bytes(path: Path, *parts: bytes | memoryview) -> str:
    """Write a file from its parts; return its SHA-256 digest, which is of what was meant, not of what can be read."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
    return digest.hexdigest()
