"""A folder of preprocessed songs: found, checked, read one by one, and put together into batches.

Shapes: B songs, T latent frames, C latent channels, L condition tokens, E condition width.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from woodshed.data.manifest import OUR_RECORD, Manifest, read_manifest, shard_manifests, unfinished_folders
from woodshed.data.songs import MOST_NAMED, TagPosition, listed
from woodshed.data.tensor_files import read_tensors
from woodshed.errors import DataError, collecting

KEYS = (
    "target_latents",
    "attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "context_latents",
    "metadata",
)
PADDED_TOKENS = 512 + 1 + 256  # lyrics, reference and prompt of ACE-Step's trainer and of those that follow it
CHECKED_AT_OPENING = 200  # datasets up to this size are read once before training, so that errors come first
TEMPORARY = (".tmp.pt", ".__writing__.pt")  # how other tools end the names of files that they have not finished


@dataclass(frozen=True)
class Sample:
    """One song as the decoder meets it, without any padding."""

    name: str
    latents: Tensor  # (T, C)
    conditions: Tensor  # (L, E)
    context: Tensor  # (T, 2 C): source latents and chunk mask

    def to(self, device: torch.device) -> "Sample":
        """Copy to a device; the numbers stay as they were stored."""
        latents, conditions, context = (value.to(device) for value in (self.latents, self.conditions, self.context))
        return Sample(self.name, latents, conditions, context)


@dataclass(frozen=True)
class Batch:
    """Songs side by side, padded with zeros at their ends where they differ in length."""

    names: tuple[str, ...]
    frames: tuple[int, ...]  # valid frames of each song
    latents: Tensor  # (B, T, C)
    context: Tensor  # (B, T, 2 C)
    conditions: Tensor  # (B, L, E)
    frame_lengths: Tensor | None  # (B,) long; None when no song has padding frames
    condition_lengths: Tensor | None  # (B,) long; None when no song has padding conditions

    def _tensors(self) -> dict[str, Any]:
        """Return the tensors by field name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Copy to a device, floating-point tensors in `dtype`; from pinned memory without waiting."""
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype, non_blocking=True)
            for name, value in self._tensors().items()
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """Copy what is in RAM into page-locked memory; the data loader calls this by name."""
        in_ram = {name: value for name, value in self._tensors().items() if value.device.type == "cpu"}
        return replace(self, **{name: value.pin_memory() for name, value in in_ram.items()})


def collate(samples: Sequence[Sample]) -> Batch:
    """Put songs side by side."""
    frames = tuple(len(sample.latents) for sample in samples)
    tokens = [len(sample.conditions) for sample in samples]
    return Batch(
        names=tuple(sample.name for sample in samples),
        frames=frames,
        latents=pad_sequence([sample.latents for sample in samples], batch_first=True),
        context=pad_sequence([sample.context for sample in samples], batch_first=True),
        conditions=pad_sequence([sample.conditions for sample in samples], batch_first=True),
        frame_lengths=None if len(set(frames)) == 1 else torch.tensor(frames),
        condition_lengths=None if len(set(tokens)) == 1 else torch.tensor(tokens),
    )


@dataclass(frozen=True)
class Demands:
    """What a model expects of its songs."""

    latent_channels: int  # C
    condition_width: int  # E
    fingerprint: str  # of its condition encoder; see `woodshed.models.checkpoints.fingerprint`


class SongDataset(Dataset[Sample]):
    """Preprocessed songs, read when asked for; small enough to travel to worker processes."""

    def __init__(
        self,
        files: Sequence[Path],
        demands: Demands,
        *,
        custom_tag: str,
        tag_position: TagPosition = "prepend",
        notices: tuple[str, ...],
    ) -> None:
        self.files = tuple(files)
        self.names = tuple(path.stem for path in files)
        self.demands = demands
        self.custom_tag = custom_tag
        self.tag_position = tag_position
        self.notices = notices

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Read one song.

        Raises:
            DataError: when the file cannot be used, saying why.
        """
        return read_sample(self.files[index], self.demands)

    def weight_up_to(self, limit: float) -> int | None:
        """Return what the files weigh, and so about take in memory, in bytes; None where that is more than a limit.

        It looks at no more of them than it must.
        """
        weight = 0
        for path in self.files:
            weight += path.stat().st_size
            if weight > limit:
                return None
        return weight


def open_dataset(
    folder: Path, *, latent_channels: int, condition_width: int, fingerprint: str, model: str
) -> SongDataset:
    """Open a folder of `.pt` files for a model.

    Args:
        folder: with or without a manifest.json.
        latent_channels, condition_width: of the model.
        fingerprint: of the model's condition encoder; see `woodshed.models.checkpoints.fingerprint`.
        model: its name, for messages.

    Raises:
        DataError: when there are no songs, when they were made for another model variant, or, in small datasets, when
            any of them cannot be used; with all problems.
    """
    if not folder.is_dir():
        raise DataError(f"There is no dataset folder {folder}. Make one with woodshed preprocess.")
    manifest = read_manifest(folder)
    if manifest.fingerprint and manifest.fingerprint != fingerprint:
        raise DataError(
            f"The dataset {folder} was made for {manifest.model}, whose conditions mean nothing to {model}. "
            f"Preprocess the songs again with --model {model}, or train on {manifest.model}."
        )
    parts = shard_manifests(folder)
    if parts:
        raise DataError(
            f"The dataset {folder} is in {len(parts)} parts that are not put together yet. Run woodshed dataset merge "
            f"{folder} once all parts are there."
        )
    files = _song_files(folder, manifest)
    demands = Demands(latent_channels, condition_width, fingerprint)
    if len(files) <= CHECKED_AT_OPENING:
        check_all(files, demands)
    return SongDataset(
        files,
        demands,
        custom_tag=manifest.custom_tag,
        tag_position=manifest.tag_position,
        notices=_notices(folder, manifest, model, files[0]),
    )


def _notices(folder: Path, manifest: Manifest, model: str, first: Path) -> tuple[str, ...]:
    said = []
    if not manifest.is_complete or unfinished_folders(folder):
        said.append(f"Preprocessing of {folder} was interrupted: only the songs that were finished take part.")
    elif not manifest.fingerprint:
        said.append(
            f"The dataset {folder} was not made by Woodshed: its conditions may differ from what the model reads at "
            "inference, and it does not say for which model variant it was made. `woodshed preprocess` makes one that "
            "matches."
        )
    if manifest.conditioning == "legacy" or (not manifest.fingerprint and _is_padded(first)):
        said.append(
            f"The conditions in {folder} are those of older trainers: no language header before the lyrics, which end "
            "after 512 tokens, and zeros as the reference. The model reads other ones at inference. Their padding is "
            f"left out here; to make all of it anew: woodshed preprocess --model {model} --audio-dir SONGS "
            "--tensor-output FOLDER."
        )
    return tuple(said)


def _is_padded(path: Path) -> bool:
    """Tell whether a sample's conditions have the length that older trainers pad them to."""
    try:
        content = read_tensors(path, mapped=True)
    except DataError:
        return False
    mask = content.get("encoder_attention_mask") if isinstance(content, dict) else None
    return isinstance(mask, Tensor) and mask.shape == (PADDED_TOKENS,)


def check_all(files: Sequence[Path], demands: Demands) -> None:
    """Read every file once.

    Raises:
        DataError: naming the files that cannot be used.
    """
    problems: list[str] = []
    for path in files:
        with collecting(problems):
            read_sample(path, demands)
    if len(problems) > MOST_NAMED:
        problems[MOST_NAMED:] = [f"There are {len(problems) - MOST_NAMED} more problems of this kind."]
    if problems:
        raise DataError(*problems)


def _song_files(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the sample files, by the manifest or by listing."""
    with os.scandir(folder) as entries:  # a Path for each of 100,000 files would take most of a start's time
        found = {entry.name for entry in entries if entry.name.endswith(".pt") and not _is_temporary(entry.name)}
    if manifest.samples is None:
        if not found:
            raise DataError(f"There are no .pt files in {folder}. Make them with woodshed preprocess.")
        return [folder / name for name in sorted(found)]
    if not manifest.samples:
        raise DataError(f"The manifest in {folder} names no songs. Run woodshed preprocess again.")
    missing = [name for name in manifest.samples if name not in found]
    if missing:
        gone = listed(missing)
        raise DataError(
            f"The manifest in {folder} names files that are not there: {gone}. Run woodshed preprocess again."
        )
    return [folder / name for name in manifest.samples]


def _is_temporary(name: str) -> bool:
    """Tell what is no sample: unfinished files, and hidden ones such as macOS puts beside others."""
    return name.startswith(".") or name.endswith(TEMPORARY)


def record_of(content: Any) -> Mapping[str, Any]:
    """Return what preprocessing noted in a sample file about its making; nothing in files of other tools."""
    metadata = content.get("metadata") if isinstance(content, dict) else None
    record = metadata.get(OUR_RECORD) if isinstance(metadata, dict) else None
    return record if isinstance(record, dict) else {}


def read_sample(path: Path, demands: Demands) -> Sample:
    """Read one `.pt` file, check it, and trim its conditions to the valid ones, because the decoder ignores masks.

    Raises:
        DataError: with everything that is wrong with the file.
    """
    content = read_tensors(path)
    problems = _problems(content, demands)
    if problems:
        raise DataError(*(f"{path.name}: {problem}. Preprocess that song again." for problem in problems))
    is_valid = content["encoder_attention_mask"].bool()
    return Sample(
        path.stem, content["target_latents"], content["encoder_hidden_states"][is_valid], content["context_latents"]
    )


def _problems(content: Any, demands: Demands) -> list[str]:
    """Return what is wrong with a sample file's content, as sentences without their full stop."""
    if not isinstance(content, dict):
        return [f"it holds a {type(content).__name__} instead of a dictionary"]
    missing = [key for key in KEYS if key not in content]
    if missing:
        return [f"it lacks {', '.join(missing)}"]
    record = record_of(content)
    if record and record.get("fingerprint") != demands.fingerprint:
        return [f"it was made for {record.get('model')}, whose conditions mean nothing to this model"]
    tensors = {key: content[key] for key in KEYS if key != "metadata"}
    wrong = [f"{key} is no tensor" for key, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong:
        return wrong
    return _wrong_shapes(tensors, demands) or [
        f"{key} holds numbers that are not finite"
        for key in ("target_latents", "context_latents", "encoder_hidden_states")
        if not tensors[key].isfinite().all()
    ]


def _wrong_shapes(tensors: Mapping[str, Tensor], demands: Demands) -> list[str]:
    latents, states, mask = (
        tensors[key] for key in ("target_latents", "encoder_hidden_states", "encoder_attention_mask")
    )
    frames = len(latents) if latents.dim() else 0
    if frames == 0:
        return ["it has no frames"]
    expected = {
        "target_latents": (frames, demands.latent_channels),
        "context_latents": (frames, 2 * demands.latent_channels),
        "encoder_hidden_states": (len(states) if states.dim() else 0, demands.condition_width),
        "encoder_attention_mask": (len(states) if states.dim() else 0,),
    }
    wrong = [
        f"{key} has the shape {tuple(tensors[key].shape)} instead of {shape}, so it was made for another model"
        for key, shape in expected.items()
        if tuple(tensors[key].shape) != shape
    ]
    if not wrong and not mask.bool().any():
        return ["it has no conditions"]
    return wrong
