"""The record that `woodshed models get` leaves in a folder: where it came from, and the digest of every file.

{"repository": "ACE-Step/acestep-v15-base", "revision": "0f3c...",
"files": {"config.json": {"size": 1907, "sha256": "..."}}}
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from woodshed.errors import CheckpointError
from woodshed.models.config import read_json
from woodshed.storage import write_text

RECORD = "woodshed-fetched.json"
CHUNK = 2**20


class FetchedFile(BaseModel):
    """One file as it was published."""

    model_config = ConfigDict(frozen=True, strict=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FetchRecord(BaseModel):
    """Where a folder came from and what was fetched."""

    model_config = ConfigDict(frozen=True, strict=True)

    repository: str
    revision: str  # the commit
    files: Mapping[str, FetchedFile]


def read_record(folder: Path) -> FetchRecord | None:
    """Return what was noted about a folder; None when nothing was.

    Raises:
        CheckpointError: when the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return FetchRecord.model_validate(read_json(path))
    except ValidationError as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(f"{path} is damaged ({wrong}). Delete it and fetch the model again.") from error


def write_record(folder: Path, record: FetchRecord) -> None:
    """Note where a folder came from."""
    write_text(folder / RECORD, json.dumps(record.model_dump(), indent=1) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
    return found.hexdigest()


def differences(folder: Path, record: FetchRecord, *, reads_all: bool) -> list[str]:
    """Return how a folder's files differ from what was fetched, as parts of a sentence.

    Args:
        folder: to look at.
        record: of it.
        reads_all: compare every byte; otherwise only which files are there, and their sizes.
    """
    odd = []
    for name, known in record.files.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            odd.append(f"{name} is missing")
        elif path.stat().st_size != known.size:
            odd.append(f"{name} has {path.stat().st_size:,} bytes instead of {known.size:,}")
        elif reads_all and file_sha256(path) != known.sha256:
            odd.append(f"{name} has other bytes")
    return odd
