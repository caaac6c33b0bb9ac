"""The manifest of a dataset folder: which samples it holds and, in our own block, for which model they were made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from woodshed.data.songs import TagPosition
from woodshed.errors import DataError, UserError
from woodshed.storage import write_text

MANIFEST = "manifest.json"
OUR_RECORD = "woodshed"  # our block, in the manifest and in the metadata of a sample
UNFINISHED = ".unfinished"  # folder of intermediate results beside the samples; gone when all is done
SHARD_MANIFESTS = "manifest-*-of-*.json"  # what parts of a dataset leave until they are merged


@dataclass(frozen=True)
class Manifest:
    """What a manifest.json says; everything optional, because other tools write less."""

    samples: tuple[str, ...] | None = None
    model: str = ""
    fingerprint: str = ""
    conditioning: str = ""
    custom_tag: str = ""
    tag_position: TagPosition = "prepend"  # upstream's own default
    is_complete: bool = True  # false when preprocessing was interrupted


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.json, of ours or of ACE-Step; a missing one is an empty one.

    Old manifests of other tools name files relative to some working directory or with Windows paths; only the file
    names count, as the folder can be moved.

    Raises:
        DataError: when the file is no manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return Manifest()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a manifest ({error}). {MENDING}") from error
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list) or not all(isinstance(name, str) for name in samples):
        raise DataError(f'{path} is no manifest: it has no list "samples" of file names. {MENDING}')
    ours, metadata = _block(content, OUR_RECORD), _block(content, "metadata")
    return Manifest(
        samples=tuple(dict.fromkeys(map(_file_name, samples))),
        model=str(ours.get("model", "")),
        fingerprint=str(ours.get("fingerprint", "")),
        conditioning=str(ours.get("conditioning", "")),
        custom_tag=str(metadata.get("custom_tag") or ""),
        tag_position=_position(metadata.get("tag_position")),
        is_complete=ours.get("is_complete") is not False,
    )


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest, whole or not at all.

    Raises:
        UserError: when the disk does not take it.
    """
    try:
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Make room on the disk and run the same command again: what "
            "is done is kept."
        ) from error


MENDING = "Delete it to use every .pt file of the folder, or run woodshed preprocess again."


def shard_manifests(folder: Path) -> list[Path]:
    """Return the manifests of parts that were not merged yet."""
    return sorted(folder.glob(SHARD_MANIFESTS))


def unfinished_folders(folder: Path) -> list[Path]:
    """Return where preprocessing keeps its intermediate results, if it is at work or was interrupted."""
    return sorted(path for path in folder.glob(f"{UNFINISHED}*") if path.is_dir())


def _block(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = content.get(name)
    return block if isinstance(block, dict) else {}


def _position(value: Any) -> TagPosition:
    return next((position for position in get_args(TagPosition) if position == value), Manifest.tag_position)


def _file_name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
