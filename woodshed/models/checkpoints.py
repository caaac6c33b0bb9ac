"""Checkpoint folders: find the models below a root, identify them, and read what their config.json says.

Nothing in a folder is ever executed: `auto_map` and the Python files beside the weights are ignored.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from woodshed.errors import CheckpointError
from woodshed.models.config import ModelConfig, read_json, read_model_config

Kind = Literal["base", "sft", "turbo", "unknown"]

OFFICIAL_PREFIX = "acestep-v15-"
OFFICIAL_NAMES = frozenset(
    OFFICIAL_PREFIX + word
    for word in (
        *("turbo", "base", "sft", "xl-turbo", "xl-base", "xl-sft"),
        *("turbo-shift1", "turbo-shift3", "turbo-continuous"),
    )
)
NOT_MODELS = ("vae", "qwen", "acestep-5hz")  # beginnings of folder names beside the models
VAE_FOLDER = "vae"
TEXT_ENCODER_FOLDER = "Qwen3-Embedding-0.6B"


@dataclass(frozen=True)
class Checkpoint:
    """One model: a folder with config.json, weights and silence_latent.pt."""

    folder: Path
    config: ModelConfig
    weight_files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The folder's name, by which the user chooses the model."""
        return self.folder.name

    @property
    def is_official(self) -> bool:
        """Whether the folder is called like one that ACE-Step publishes."""
        return self.name in OFFICIAL_NAMES

    @property
    def is_xl(self) -> bool:
        """Whether this is one of the larger models."""
        return self.config.is_xl

    @property
    def kind(self) -> Kind:
        """What the model is or descends from; "unknown" when neither config.json nor the folder's name says it."""
        if self.config.is_turbo:
            return "turbo"
        kinds: tuple[Kind, ...] = ("base", "sft")
        words = re.split(r"[^a-z0-9]+", self.name.lower())
        by_name: list[Kind] = [kind for kind in kinds if kind in words]
        by_config: list[Kind] = [kind for kind in kinds if kind == self.config.model_version]
        # The published folders are called what they are; a fine-tune's name is only a hint.
        clues = by_name + by_config if self.is_official else by_config + by_name
        return clues[0] if clues else "unknown"


@dataclass(frozen=True)
class CheckpointRoot:
    """What a checkpoint folder holds."""

    root: Path
    models: tuple[Checkpoint, ...]
    vae: Path | None = None
    text_encoder: Path | None = None
    unusable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # folder name -> what is wrong with it

    def require_vae(self) -> Path:
        """Return the VAE's folder.

        Raises:
            CheckpointError: when there is none.
        """
        return self._require(self.vae, VAE_FOLDER, "the VAE that turns songs into latents")

    def require_text_encoder(self) -> Path:
        """Return the text encoder's folder.

        Raises:
            CheckpointError: when there is none.
        """
        return self._require(self.text_encoder, TEXT_ENCODER_FOLDER, "the text encoder")

    def _require(self, folder: Path | None, name: str, what: str) -> Path:
        if folder is None:
            raise CheckpointError(
                f"{self.root} has no folder {name} ({what}). It comes with ACE-Step/Ace-Step1.5 on huggingface.co: "
                f"put it beside the models."
            )
        return folder


def find_checkpoints(root: Path) -> CheckpointRoot:
    """Look at every folder directly below a root.

    A model that cannot be used is remembered with its problems and does not hide the others.

    Raises:
        CheckpointError: when the root does not exist, is itself a model, or holds no usable one.
    """
    if not root.is_dir():
        raise CheckpointError(
            f"There is no checkpoint folder {root}. Pass the folder that holds the models with --checkpoint-dir."
        )
    if _is_model_folder(root):
        raise CheckpointError(
            f"{root} is a model, not the folder that holds the models. Use --checkpoint-dir {root.absolute().parent} "
            f"--model {root.absolute().name}."
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    models, unusable = [], {}
    for folder in folders:
        if not folder.name.lower().startswith(NOT_MODELS) and _is_model_folder(folder):
            try:
                models.append(read_checkpoint(folder))
            except CheckpointError as error:
                unusable[folder.name] = error.problems
    if not models:
        if unusable:
            raise CheckpointError(*(problem for problems in unusable.values() for problem in problems))
        saw = ", ".join(folder.name for folder in folders) or "no folder at all"
        raise CheckpointError(
            f"There is no ACE-Step 1.5 model in {root}: saw {saw}. A model is a folder such as acestep-v15-base with "
            f"config.json and model.safetensors; download one from huggingface.co/ACE-Step."
        )
    return CheckpointRoot(
        root, tuple(models), _folder_or_none(root / VAE_FOLDER), _folder_or_none(root / TEXT_ENCODER_FOLDER), unusable
    )


def _folder_or_none(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _is_model_folder(folder: Path) -> bool:
    """Return whether config.json claims to be an ACE-Step model, or cannot be read so that nobody knows."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        fields = read_json(path)
    except CheckpointError:
        return True
    return fields.get("model_type") == "acestep" or "auto_map" in fields


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one model folder: config.json and the list of weight files, not the weights.

    Raises:
        CheckpointError: with everything that is wrong with the two.
    """
    problems: list[str] = []
    config: ModelConfig | None = None
    files: tuple[Path, ...] = ()
    try:
        config = read_model_config(folder)
    except CheckpointError as error:
        problems.extend(error.problems)
    try:
        files = find_weight_files(folder)
    except CheckpointError as error:
        problems.extend(error.problems)
    if config is None or problems:
        raise CheckpointError(*problems)
    return Checkpoint(folder, config, files)


def find_weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the one weight file, or the shards that the index names.

    Raises:
        CheckpointError: when there is neither, or a shard is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise CheckpointError(f"{folder} has no weights: neither model.safetensors nor model.safetensors.index.json.")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map that names the shards. Download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names. Download the model again.")
    return tuple(folder / name for name in names)


def choose_model(found: CheckpointRoot, name: str) -> Checkpoint:
    """Return the model of that folder name, or of a published model's last words: "xl-turbo" is acestep-v15-xl-turbo.

    Raises:
        CheckpointError: when there is none, naming those that exist; or when it is there but cannot be used.
    """
    by_name = {model.name: model for model in found.models}
    for candidate in (name, OFFICIAL_PREFIX + name):
        if candidate in by_name:
            return by_name[candidate]
        if candidate in found.unusable:
            raise CheckpointError(*found.unusable[candidate])
    words = {known.removeprefix(OFFICIAL_PREFIX): known for known in by_name} | {known: known for known in by_name}
    close = difflib.get_close_matches(name, words, n=1)
    hint = f" Did you mean {words[close[0]]}?" if close else ""
    raise CheckpointError(f"There is no model {name} in {found.root}.{hint} Found: {', '.join(by_name)}.")


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest that tells one condition encoder from another, as songs are encoded for one of them only.

    It reads the vectors (norms, biases, learned tokens) and the text projection, a few megabytes, which any training
    of the encoder changes. A fine-tune that leaves the encoder alone keeps its parent's fingerprint.

    Raises:
        CheckpointError: when the weight files cannot be read or hold no condition encoder.
    """
    import torch  # here, so that models are listed at once

    from woodshed.models.weights import read_headers

    stored = read_headers(checkpoint.weight_files)
    always = ("null_condition_emb", "encoder.text_projector.weight")
    missing = [name for name in always if name not in stored]
    if missing:
        raise CheckpointError(f"The weights in {checkpoint.folder} lack {' and '.join(missing)}. Download them again.")
    vectors = [name for name in sorted(stored) if name.startswith("encoder.") and stored[name].is_vector]
    digest = hashlib.sha256()
    for name in (*always, *vectors):
        digest.update(name.encode())
        digest.update(stored[name].read(dtype=torch.float32).numpy().tobytes())
    return digest.hexdigest()
