"""The parts of a dataset, encoded by several processes or machines, become one: as if one had encoded everything."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from woodshed.data.manifest import MANIFEST, OUR_RECORD, shard_manifests, unfinished_folders, write_manifest
from woodshed.data.songs import listed
from woodshed.errors import DataError
from woodshed.storage import whole_file

Content = dict[str, Any]


@dataclass(frozen=True)
class Merged:
    """What was put together."""

    folder: Path
    songs: int
    parts: int


def _is_file_name(name: str) -> str:
    if not name.endswith(".pt") or name.startswith(".") or {"/", "\\", ":", "\0"} & set(name):
        raise ValueError("a .pt file in the folder of the manifest")
    return name


class _Strict(BaseModel):
    """What a manifest must hold; more may stand there."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class _Shard(_Strict):
    number: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1, le=999_999)]
    places: list[int]
    songs: str
    settings: str


class _Record(_Strict):
    shard: _Shard


class _Metadata(_Strict):
    name: str
    all_instrumental: bool


class _PartContent(_Strict):
    """The manifest of a part, as far as it is used; a stranger may have written it."""

    metadata: _Metadata
    samples: list[Annotated[str, AfterValidator(_is_file_name)]]
    woodshed: _Record

    @model_validator(mode="after")
    def _has_a_place_for_each(self) -> Self:
        if len(self.samples) != len(self.woodshed.shard.places):
            raise ValueError("as many places as samples")
        return self


@dataclass(frozen=True)
class Part:
    """One shard's manifest."""

    path: Path
    content: Content

    @property
    def shard(self) -> Content:
        """Our record of which part it is."""
        shard: Content = self.content[OUR_RECORD]["shard"]
        return shard

    @property
    def samples(self) -> list[Path]:
        """Its songs' files."""
        return [self.path.parent / name for name in self.content["samples"]]


def merge_shards(folders: Sequence[Path], output: Path) -> Merged:
    """Put the parts in one or more folders together.

    The result is what one run over all songs gives, byte for byte. Parts that lie in the output folder become part of
    it; files of other folders are linked where the disk is the same, else copied, and those folders stay as they are.

    Args:
        folders: that `woodshed preprocess --shard I/N` wrote into.
        output: may be one of them.

    Raises:
        DataError: with everything that keeps the parts from being one dataset.
    """
    problems: list[str] = []
    parts = [part for folder in folders for part in _read_parts(folder, problems)]
    problems += _misfits(parts)
    if problems:
        raise DataError(*problems)
    parts.sort(key=lambda part: int(part.shard["number"]))
    for part in parts:
        for path in part.samples:
            _bring(path, output / path.name)
    content = _whole_manifest(parts, output)
    write_manifest(output / MANIFEST, content)
    for path in shard_manifests(output):
        path.unlink()
    for folder in unfinished_folders(output):
        shutil.rmtree(folder, ignore_errors=True)
    return Merged(output, len(content["samples"]), len(parts))


def _read_parts(folder: Path, problems: list[str]) -> list[Part]:
    """Read the manifests of the parts in a folder."""
    if not folder.is_dir():
        problems.append(f"There is no folder {folder}.")
        return []
    parts = []
    for path in shard_manifests(folder):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _PartContent.model_validate(content)
            json.dumps(content, ensure_ascii=False).encode()  # half a character could not be written again
            parts.append(Part(path, content))
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            problems.append(f"{path} cannot be read as the manifest of a part ({reason}). {AGAIN}")
    if not parts and not problems:
        problems.append(
            f"There are no parts of a dataset in {folder}: looked for manifest-I-of-N.json, which "
            "`woodshed preprocess --shard I/N` writes."
        )
    return parts


AGAIN = "Run that part of woodshed preprocess again."


def _misfits(parts: Sequence[Part]) -> list[str]:
    """Return what keeps readable parts from being the parts of one dataset."""
    if not parts:
        return []
    counts = sorted({part.shard["count"] for part in parts})
    if len(counts) > 1:
        said = " and ".join(map(str, counts))
        return [f"These are parts of different divisions: into {said}. Delete the manifests of one of them."]
    problems = []
    numbers = Counter(part.shard["number"] for part in parts)
    missing = [f"{number}/{counts[0]}" for number in range(1, counts[0] + 1) if number not in numbers]
    if missing:
        problems.append(f"Parts are missing: {listed(missing)}. Run woodshed preprocess --shard for each.")
    twice = [f"{number}/{counts[0]}" for number, count in numbers.items() if count > 1]
    if twice:
        problems.append(f"Parts are there more than once: {listed(twice)}. Merge each of them once.")
    problems += [problem for part in parts for problem in _gaps(part)]
    names = Counter(path.name for part in parts for path in part.samples)
    doubled = [name for name, count in names.items() if count > 1]
    if doubled and not twice:
        problems.append(f"Songs of different parts have one name: {listed(doubled)}. Rename one of the audio files.")
    for key, what in (("songs", "different songs"), ("settings", "different settings or models")):
        if len({part.shard[key] for part in parts}) > 1:
            problems.append(f"The parts were made from {what}, so they are no parts of one dataset. Make them again.")
    return problems


def _gaps(part: Part) -> list[str]:
    """Return what a part lacks."""
    problems = []
    if not part.content[OUR_RECORD].get("is_complete"):
        problems.append(f"{part.path} says that its part was interrupted. {AGAIN}")
    gone = [path.name for path in part.samples if not path.is_file()]
    if gone:
        problems.append(f"{part.path} names files that are not there: {listed(gone)}. {AGAIN}")
    return problems


def _bring(path: Path, target: Path) -> None:
    """Let a file be in the output too."""
    if target.exists() and target.samefile(path):
        return
    with whole_file(target) as building:
        building.unlink(missing_ok=True)
        try:
            os.link(path, building)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(path, building)


def _whole_manifest(parts: Sequence[Part], output: Path) -> Content:
    """Return the manifest of a run over all songs, in the order of the songs."""
    placed = [
        (place, name)
        for part in parts
        for place, name in zip(part.shard["places"], part.content["samples"], strict=True)
    ]
    samples = [name for _, name in sorted(placed)]
    metadata = dict(parts[0].content["metadata"])
    metadata["name"] = metadata["name"] or output.name
    metadata["num_samples"] = len(samples)
    metadata["all_instrumental"] = all(part.content["metadata"]["all_instrumental"] for part in parts)
    ours = {key: value for key, value in parts[0].content[OUR_RECORD].items() if key != "shard"}
    return {"metadata": metadata, "samples": samples, "num_samples": len(samples), OUR_RECORD: ours}
