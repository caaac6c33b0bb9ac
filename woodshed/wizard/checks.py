"""What can be found out about an answer right away: folders that are not there, models that do not exist."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from woodshed.errors import CheckpointError, UserError
from woodshed.wizard import models, remember
from woodshed.wizard.dialog import Dialog, RefusedError
from woodshed.wizard.draft import Draft
from woodshed.wizard.face import Ask, Choice
from woodshed.wizard.layout import paragraph

CONTINUE_WHY = (
    "Yes goes on at its newest checkpoint as if it had never stopped. No leaves that run alone: choose another folder "
    "then."
)


def checkpoint_dir(draft: Draft) -> Path:
    """Return where the models lie, as things stand."""
    return Path(str(dict(draft.look().settings)["checkpoint_dir"]))


def with_choices(ask: Ask, name: str, draft: Draft) -> Ask:
    """Add the answers that this machine offers to a question that is open otherwise."""
    if name == "model" and "checkpoint_dir" in draft.kind.model_fields:
        try:
            choices = models.model_choices(checkpoint_dir(draft))
        except CheckpointError as error:
            lines = [row for said in error.problems for row in paragraph(said, 80, "problem")]
            return replace(ask, text=(*ask.text, *lines))
        if not draft.kind.model_fields["model"].is_required():
            choices = (*choices, Choice("-", "none"))
        enter = f"takes {ask.default}" if draft.is_missing(name) else ask.enter
        return replace(ask, choices=choices, is_open=True, enter=enter)
    if name == "device":
        from woodshed.models.devices import available_devices

        devices = ["auto", *available_devices()]
        return replace(ask, choices=tuple(Choice(word, word) for word in devices), is_open=True)
    return ask


def check(name: str, value: Any, draft: Draft) -> Any:
    """Look at an answer where it can be looked at, and return it in its final form.

    Raises:
        RefusedError: with what is wrong.
    """
    problem: str | None = None
    try:
        match name:
            case "checkpoint_dir":
                models.model_choices(Path(value))
            case "model" if value and "checkpoint_dir" in draft.kind.model_fields:
                return _model(draft, str(value))
            case "dataset_dir" if value and value != "none":
                problem = _dataset_problem(Path(value))
            case "audio_dir" if value and value != "none" and not Path(value).is_dir():
                problem = f"There is no folder {value}."
            case "dataset_json" if value and value != "none" and not Path(value).is_file():
                problem = f"There is no file {value}."
            case "device":
                from woodshed.models.devices import resolve_device

                resolve_device(str(value))
    except UserError as error:
        raise RefusedError(*error.problems) from None
    if problem:
        raise RefusedError(problem)
    return value


def _model(draft: Draft, name: str) -> str:
    """Return the folder name of a model, and note whether its base has to be asked for."""
    from woodshed.models.checkpoints import choose_model, find_checkpoints

    if name in ("none", "-"):
        return ""
    model = choose_model(find_checkpoints(checkpoint_dir(draft)), name)
    if draft.answers.get("model") != model.name:
        draft.base = None
    draft.is_base_unknown = model.kind == "unknown"
    return model.name


def _dataset_problem(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"There is no folder {folder}. `Preprocess songs` in the menu makes a dataset."
    if not remember.holds_tensors(folder):
        return f"There are no .pt files in {folder}. `Preprocess songs` in the menu makes them."
    return None


def after(name: str, draft: Draft, dialog: Dialog) -> None:
    """Follow up an answer that was accepted: a folder that holds a run is continued or left alone."""
    if name != "output_dir" or "resume_from" not in draft.kind.model_fields:
        return
    folder = Path(str(dict(draft.look().settings)["output_dir"]))
    if not folder.is_dir() or draft.answers.get("resume_from"):
        return
    from woodshed.training.checkpoint import holds_a_run, list_checkpoints  # loads torch

    if not holds_a_run(folder):
        return
    if not list_checkpoints(folder):
        dialog.note(f"{folder} already holds a run without a checkpoint to continue from. Choose another folder.")
    elif dialog.confirm(f"{folder} already holds a run. Continue it?", default=True, why=CONTINUE_WHY):
        draft.answers["resume_from"] = "latest"
        dialog.note("Resume from is now latest: the run goes on at its newest checkpoint.")
    else:
        dialog.note("Then choose another folder: a new run never writes into the folder of an old one.")
