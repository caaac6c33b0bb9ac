"""Save and restore a run: the adapter as other tools load it, and beside it everything an exact resume needs.

    checkpoint-epoch-10/
      adapter_config.json, adapter_model.safetensors    the adapter, playable as it is (LoKr: lokr_weights.safetensors)
      resume/parameters.safetensors                     the trained parameters, float32, as the optimizer knows them
      resume/optimizer.pt                               the optimizer's state, loadable with weights_only=True
      resume/state.json                                 position, settings, digests

Random generators are not saved: every draw is a function of (seed, epoch, song).
"""

import hashlib
import itertools
import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from woodshed.adapters.adapter import Adapter
from woodshed.adapters.files import verify_saved
from woodshed.errors import UserError
from woodshed.settings import rules
from woodshed.settings.schema import TrainSettings
from woodshed.storage import save_tensors, whole_folder

FORMAT = 1
MUST_MATCH = (
    "adapter_type",
    "attention_type",
    "target_modules",
    "rank",
    "rank_pattern",
    "oft_block_size",
    "lokr_linear_dim",
    "lokr_factor",
    "lokr_decompose_both",
    "lokr_use_tucker",
    "lokr_use_scalar",
    "lokr_weight_decompose",
    "bias",
    "optimizer_type",
)
"""Settings that decide which tensors exist; a resume with another value cannot continue."""
MAY_CHANGE_SILENTLY = (
    "checkpoint_dir",
    "model",
    "dataset_dir",
    "output_dir",
    "resume_from",
    "init_from",
    "save_every",
    "log_every",
    "keep_last",
    "keep_best",
    "log_dir",
    "log_heavy_every",
    "sample_every_n_epochs",
    "num_workers",
    "pin_memory",
    "prefetch_factor",
    "persistent_workers",
    "keep_in_memory",
    "gradient_checkpointing",
    "offload_encoder",
    "targets_from",  # the modules themselves are compared: an estimate may lie elsewhere now
    "top_k",
)
"""Settings that change neither the numbers nor the files that matter."""
_CHECKPOINT_NAME = re.compile(r"checkpoint-epoch-(\d+)(?:-step-(\d+))?")


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 1  # the epoch in progress, counting from 1
    steps_in_epoch: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in all
    epoch_loss: float = 0.0  # sum over the songs seen in this epoch
    epoch_songs: int = 0


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a run continues from."""

    folder: Path
    position: Position
    settings: dict[str, Any]  # of the run that wrote it
    model: str
    fingerprint: str
    songs: int
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16 loss scaling
    targets: tuple[str, ...] = ()  # the adapted modules; empty in checkpoints that do not say

    def refuse_misfit(self, settings: TrainSettings, *, model: str, fingerprint: str, songs: int | None) -> None:
        """Stop when this checkpoint cannot continue with these settings.

        Args:
            settings: of the run that wants to continue.
            model, fingerprint: of its model.
            songs: in its dataset; None when that cannot be opened.

        Raises:
            UserError: naming everything that differs.
        """
        now = settings.model_dump(mode="json")
        problems = [
            f"{self.folder} was trained with {name} {self.settings[name]}; this run asks for {now[name]}."
            for name in MUST_MATCH
            if _differ(self.settings.get(name, now[name]), now[name]) and _concerns(name, settings)
        ]
        if fingerprint != self.fingerprint:
            problems.append(f"{self.folder} was trained on {self.model}; this run asks for {model}.")
        if self.position.steps_in_epoch:
            problems += [
                f"{self.folder} stopped in the middle of an epoch with {name} {self.settings[name]}; "
                f"finish that epoch with the same value instead of {now[name]}."
                for name in ("batch_size", "gradient_accumulation", "seed")
                if self.settings.get(name) != now[name]
            ]
            if songs not in (None, self.songs):
                problems.append(
                    f"{self.folder} stopped in the middle of an epoch over {self.songs} songs; finish that epoch with "
                    f"the same songs instead of {songs}."
                )
        done = self.position.epoch - 1
        if settings.epochs <= done:
            problems.append(
                f"{self.folder} has already done {done} epochs; to train on, ask for more with --epochs {done + 10}."
            )
        if problems:
            raise UserError(*problems)

    def differences(self, settings: TrainSettings, *, songs: int) -> list[str]:
        """Return what this run changes about the one it continues, as sentences for the user."""
        now = settings.model_dump(mode="json")
        said = [
            f"Resuming with {name} {now[name]} instead of {self.settings[name]}."
            for name in now
            if name not in (*MUST_MATCH, *MAY_CHANGE_SILENTLY, "epochs")
            and self.settings.get(name, now[name]) != now[name]
        ]
        if songs != self.songs:
            said.append(f"Resuming with {songs} songs instead of {self.songs}.")
        before = self.settings.get("epochs")
        if before != now["epochs"]:
            said.append(
                f"Resuming for {now['epochs']} epochs instead of {before}: the learning-rate schedule is laid out anew "
                "over the whole length."
            )
        return said


def _differ(before: Any, now: Any) -> bool:
    """Compare two values of a setting; words in another order mean the same layers."""
    return sorted(before) != sorted(now) if isinstance(before, list) and isinstance(now, list) else bool(before != now)


def _concerns(name: str, settings: TrainSettings) -> bool:
    """Tell whether a setting matters to this adapter family, and to where its modules come from."""
    if name in ("attention_type", "target_modules"):
        return settings.targets_from is None
    return rules.concerns_family(name, settings)


def checkpoint_folder(output_dir: Path, position: Position, *, is_epoch_complete: bool) -> Path:
    """Return where a checkpoint of this position lies."""
    name = f"checkpoint-epoch-{position.epoch}"
    return output_dir / (name if is_epoch_complete else f"{name}-step-{position.step}")


def save_checkpoint(
    folder: Path,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    next_position: Position,
    *,
    facts: Mapping[str, Any],
    scaler: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder, whole or not at all, and its adapter proven to be the one in memory.

    Args:
        folder: its final name.
        adapter: the trained part.
        optimizer: its state is stored as `state_dict()`.
        next_position: where a resumed run goes on.
        facts: settings, model, fingerprint, songs.
        scaler: state of the fp16 loss scaler, or empty.
        recipe: what travels in the adapter file's header.
    """
    with whole_folder(folder) as building:
        adapter.save(building, recipe)
        verify_saved(adapter, building)
        resume = building / "resume"
        resume.mkdir()
        parameters = {name: value.detach().cpu().contiguous() for name, value in adapter.trainable_parameters().items()}
        save_tensors(resume / "parameters.safetensors", parameters, {"format": "pt"})
        torch.save(optimizer.state_dict(), resume / "optimizer.pt")
        state = {
            "format": FORMAT,
            "position": asdict(next_position),
            **facts,
            "scaler": dict(scaler),
            "digests": {name: _digest(resume / name) for name in ("parameters.safetensors", "optimizer.pt")},
        }
        (resume / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def find_resume_point(settings: TrainSettings) -> ResumePoint | None:
    """Return the checkpoint a run continues from, or None for a new run.

    Raises:
        UserError: when there is no such checkpoint, when it is damaged, or when a new run would write into another
            run's folder.
    """
    output = settings.output_dir
    if output.exists() and not output.is_dir():
        raise UserError(f"The output directory {output} is a file. Choose a folder with --output-dir.")
    if settings.resume_from is None:
        if holds_a_run(output):
            raise UserError(
                f"The output directory {output} already holds a run. "
                "Continue it with --resume-from latest, or choose another folder with --output-dir."
            )
        return None
    folder = _resume_folder(settings.resume_from, output)
    if holds_a_run(output) and folder.resolve().parent != output.resolve():
        raise UserError(
            f"The output directory {output} holds another run than the checkpoint {folder}. "
            "Choose a new folder with --output-dir."
        )
    return read_resume_point(folder)


def holds_a_run(folder: Path) -> bool:
    """Tell whether a folder already holds (part of) a run."""
    return any(folder.glob("checkpoint-*")) or any((folder / name).exists() for name in ("run.toml", "final"))


def _resume_folder(given: Path, output: Path) -> Path:
    """Return the checkpoint folder meant by a folder, a file in it, or the word `latest`."""
    if str(given) == "latest":
        found = list_checkpoints(output)
        if not found:
            raise UserError(f"There is no checkpoint in {output} to resume from.")
        return found[-1]
    for folder in (given, *given.parents[:2]):
        if (folder / "resume" / "state.json").is_file():
            return folder
    if given.is_dir() and (found := list_checkpoints(given)):
        raise UserError(f"{given} is a whole run. Its newest checkpoint is {found[-1]}: resume from that.")
    what = "does not exist" if not given.exists() else "has no resume/state.json, so it is not a Woodshed checkpoint"
    raise UserError(f"Cannot resume from {given}: it {what}. Give a checkpoint-epoch-N folder, or latest.")


def list_checkpoints(output: Path) -> list[Path]:
    """Return the complete checkpoint folders of a run, oldest first."""
    return [path for _, path in sorted(_placed_checkpoints(output))]


def _placed_checkpoints(output: Path) -> Iterator[tuple[tuple[int, bool, int], Path]]:
    """Yield each complete checkpoint folder with its place in the run."""
    for path in output.glob("checkpoint-epoch-*"):
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        if match and (path / "resume" / "state.json").is_file():
            epoch, step = int(match[1]), match[2]
            # A whole epoch comes after every interrupted step inside it.
            yield (epoch, step is None, int(step or 0)), path


def set_aside_newer(output: Path, point: ResumePoint) -> list[Path]:
    """Rename the checkpoints that lie ahead of where a run continues; return their new names.

    Left in place, they would be what `latest` means and what `keep_last` keeps, in the stead of those to come.
    """
    position = point.position
    place = (position.epoch, False, position.step) if position.steps_in_epoch else (position.epoch - 1, True, 0)
    renamed = []
    for found, path in sorted(_placed_checkpoints(output)):
        if found > place:
            names = (path.with_name(f"{path.name}-superseded-{number}") for number in itertools.count(1))
            renamed.append(path.rename(next(name for name in names if not name.exists())))
    return renamed


def read_resume_point(folder: Path) -> ResumePoint:
    """Read and check the small part of a checkpoint.

    Raises:
        UserError: when a file is missing, unreadable, or does not have the digest it was written with.
    """
    resume = folder / "resume"
    try:
        state = json.loads((resume / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(f"{folder} was written by another version of Woodshed (format {state['format']}).")
        damaged = [name for name, digest in state["digests"].items() if _digest(resume / name) != digest]
        if damaged:
            raise UserError(
                f"{folder} is damaged: {', '.join(damaged)} changed since it was written. Resume from an older one."
            )
        return ResumePoint(
            folder,
            Position(**state["position"]),
            state["settings"],
            state["model"],
            state["fingerprint"],
            state["songs"],
            state["scaler"],
            tuple(state.get("targets", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged or incomplete: {error}. Resume from an older one.") from error


def restore(point: ResumePoint, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
    """Load parameters and optimizer state; every tensor must match.

    Raises:
        UserError: when anything does not fit.
    """
    resume = point.folder / "resume"
    try:
        adapter.load_parameters(safetensors.torch.load_file(resume / "parameters.safetensors"))
        optimizer.load_state_dict(torch.load(resume / "optimizer.pt", weights_only=True))
    except (OSError, SafetensorError, pickle.UnpicklingError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{point.folder} cannot be resumed: {reason} Resume from an older checkpoint.") from error


def keep_newest(output: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints; 0 keeps all."""
    for folder in list_checkpoints(output)[:-count] if count else []:
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
