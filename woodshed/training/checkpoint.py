"""The checkpoints of a run: the adapter as other tools load it, and beside it everything an exact resume needs.

    checkpoint-epoch-10/
      adapter_config.json, adapter_model.safetensors    the adapter, playable as it is (LoKr: lokr_weights.safetensors)
      resume/parameters.safetensors                     the trained parameters, float32, as the optimizer knows them
      resume/optimizer.pt                               the optimizer's state, loadable with weights_only=True
      resume/state.json                                 the run, position, settings, digests of the tensors and itself
    checkpoints.json                                    the names of the newest and the best one, for other programs

Random generators are not saved: every draw is a function of (seed, epoch, song). Written by `snapshot`.
"""

import hashlib
import itertools
import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError

from woodshed.adapters.adapter import Adapter
from woodshed.errors import UserError
from woodshed.settings.schema import TrainSettings
from woodshed.storage import drop_folder, write_text
from woodshed.training.optimizers import restore_state
from woodshed.training.resume_point import Position, ResumePoint

FORMAT = 2
BEST = "best"
"""The folder of the checkpoint with the lowest held-out loss."""
POINTERS = "checkpoints.json"
"""The file that names the newest and the best checkpoint. It may lag behind the folders by one save, never ahead."""
_POINT = TypeAdapter(ResumePoint)
_CHECKPOINT_NAME = re.compile(r"checkpoint-epoch-(\d+)(?:-step-(\d+))?")


def checkpoint_folder(output_dir: Path, position: Position, *, is_epoch_complete: bool) -> Path:
    """Return where a checkpoint of this position lies."""
    name = f"checkpoint-epoch-{position.epoch}"
    return output_dir / (name if is_epoch_complete else f"{name}-step-{position.step}")


def write_pointers(output: Path, run: str) -> None:
    """Write which checkpoint of a run is the newest, and which the best, into a small file of JSON."""
    newest = list_checkpoints(output)
    best = output / BEST
    names = {
        "latest": newest[-1].name if newest else None,
        "best": BEST if (best / "resume" / "state.json").is_file() else None,
    }
    write_text(output / POINTERS, json.dumps({"run": run, **names}, indent=1) + "\n")


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
    try:
        point = read_resume_point(folder)
    except UserError as error:
        raise UserError(f"{error} {_other_than(folder)}") from error
    if holds_a_run(output) and folder.resolve().parent != output.resolve() and point.run != _run_in(output):
        raise UserError(
            f"The output directory {output} holds another run than the checkpoint {folder}. "
            "Choose a new folder with --output-dir."
        )
    return point


def _other_than(damaged: Path) -> str:
    """Return a sentence that offers the newest sound checkpoint beside one that cannot be used."""
    for folder in reversed(list_checkpoints(damaged.parent)):
        try:
            step = read_resume_point(folder).position.step
        except UserError:
            continue
        return f"The newest sound checkpoint beside it, after step {step}, is {folder}: give that to --resume-from."
    return "There is no sound checkpoint beside it."


def _run_in(output: Path) -> str | None:
    """Return the identity of the run in a folder, as far as it is known."""
    try:
        known = json.loads((output / POINTERS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return known.get("run") if isinstance(known, dict) else None


def holds_a_run(folder: Path) -> bool:
    """Tell whether a folder already holds (part of) a run."""
    return any(folder.glob("checkpoint-*")) or any((folder / name).exists() for name in ("run.toml", "final"))


def _resume_folder(given: Path, output: Path) -> Path:
    """Return the checkpoint folder meant by a folder, a file in it, or the words `latest` and `best`."""
    if str(given) == "latest":
        found = list_checkpoints(output)
        if not found:
            stopped = " Its run stopped before the first: delete that folder to start anew." * holds_a_run(output)
            raise UserError(f"There is no checkpoint in {output} to resume from.{stopped}")
        return found[-1]
    if str(given) == BEST and (output / BEST / "resume" / "state.json").is_file():
        return output / BEST
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
    """Rename the checkpoints that lie ahead of where a run continues, the best one too; return their new names.

    Left in place, they would be what `latest` means and what `keep_last` keeps, in the stead of those to come.
    """
    position = point.position
    place = (position.epoch, False, position.step) if position.steps_in_epoch else (position.epoch - 1, True, 0)
    renamed = []
    ahead = [path for found, path in sorted(_placed_checkpoints(output)) if found > place]
    best = output / BEST
    if (best / "resume" / "state.json").is_file() and _lies_ahead(best, position):
        ahead.append(best)
    for path in ahead:
        if path != point.folder:
            names = (path.with_name(f"{path.name}-superseded-{number}") for number in itertools.count(1))
            renamed.append(path.rename(next(name for name in names if not name.exists())))
    return renamed


def _lies_ahead(best: Path, position: Position) -> bool:
    try:
        return read_resume_point(best).position.step > position.step
    except UserError:  # damaged: the best that is still to come may have its name
        return True


def read_resume_point(folder: Path) -> ResumePoint:
    """Read the small part of a checkpoint, and check all of it.

    Raises:
        UserError: when a file is missing, unreadable, or does not have the digest it was written with.
    """
    resume = folder / "resume"
    try:
        state = json.loads((resume / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(f"{folder} was written by another version of Woodshed (format {state['format']}).")
        damaged = [name for name, digest in state["digests"].items() if digest_of_file(folder / name) != digest]
        if state.pop("digest") != digest_of(state):
            damaged.append("resume/state.json")
        if damaged:
            raise UserError(f"{folder} is damaged: {', '.join(damaged)} changed since it was written.")
        names = [item.name for item in fields(ResumePoint) if item.name in state and item.name != "folder"]
        return _POINT.validate_python({"folder": folder, **{name: state[name] for name in names}})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is damaged or incomplete: {reason}.") from error


def restore(point: ResumePoint, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
    """Load parameters and optimizer state; every tensor must match.

    Raises:
        UserError: when anything does not fit.
    """
    resume = point.folder / "resume"
    try:
        adapter.load_parameters(safetensors.torch.load_file(resume / "parameters.safetensors"))
        restore_state(optimizer, torch.load(resume / "optimizer.pt", map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:  # PyTorch's own words would advise to run what is in there
        raise UserError(
            f"{point.folder} cannot be resumed: resume/optimizer.pt holds more than tensors and numbers, or is "
            "damaged, so it is not read. Resume from an older checkpoint."
        ) from error
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{point.folder} cannot be resumed: {reason} Resume from an older checkpoint.") from error


def unwritable_run(output: Path, error: OSError) -> str:
    """Return a sentence on a disk that takes nothing any more, and on what is safe."""
    try:
        free = f"{shutil.disk_usage(output).free / 2**30:.2f} GiB are free there"
    except OSError:
        free = "the folder cannot be reached"
    sound = next((folder for folder in reversed(list_checkpoints(output)) if not _is_damaged(folder)), None)
    safe = f"The newest checkpoint, {sound}, is sound" if sound else "No checkpoint can be read there"
    return (
        f"The run in {output} cannot go on: {error.strerror or error} ({error.filename or 'while writing'}; {free}). "
        f"{safe}. Make room or bring the folder back, and go on with --resume-from latest."
    )


def _is_damaged(folder: Path) -> bool:
    try:
        read_resume_point(folder)
    except UserError:
        return True
    return False


def keep_newest(output: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints; 0 keeps all."""
    for folder in list_checkpoints(output)[:-count] if count else []:
        drop_folder(folder)


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 digest of a file as it can be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(state: Mapping[str, Any]) -> str:
    """Return the digest of a state as JSON will give it back, however it is laid out in the file."""
    text = json.dumps(json.loads(json.dumps(state)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
