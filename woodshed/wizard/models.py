"""The model picker: what is found on disk, described; and the checks that tell a folder of models from another."""

from pathlib import Path
from typing import TYPE_CHECKING

from woodshed.errors import CheckpointError
from woodshed.wizard.face import Ask, Choice, Line
from woodshed.wizard.layout import columns, paragraph

if TYPE_CHECKING:
    from woodshed.models.checkpoints import CheckpointRoot

RECOMMENDED = ("acestep-v15-base", "acestep-v15-turbo", "acestep-v15-sft")
"""What to train on when nothing is known, best first. Adapters of base play on base, sft and turbo."""

BASE_WHY = "Its page or its author says it. When in doubt take base."
BASES = (
    Choice("base", "base", "the pretrained model: 50 steps, with guidance"),
    Choice("sft", "sft", "fine-tuned for quality: 50 steps, with guidance"),
    Choice("turbo", "turbo", "distilled for speed: 8 steps, shift 3"),
)


def look(root: Path) -> "CheckpointRoot":
    """Look at a folder of models; what is wrong is said in words for who types paths and no flags.

    Raises:
        CheckpointError: when it holds no usable model.
    """
    from woodshed.models.checkpoints import find_checkpoints

    if not root.is_dir():
        raise CheckpointError(
            f"There is no folder {root}. Type the path of the folder that holds the models; `woodshed models get base` "
            "fetches them."
        )
    if (root / "config.json").is_file() and not any(root.glob("*/config.json")):
        raise CheckpointError(
            f"{root} is one of the models. Type the folder that it lies in: {root.absolute().parent}."
        )
    return find_checkpoints(root)


def model_choices(root: Path) -> tuple[Choice, ...]:
    """Return every usable model below a root, each with type, size and origin.

    Raises:
        CheckpointError: when there is none.
    """
    from woodshed.wizard.remember import known_base

    choices = []
    for model in look(root).models:
        size = "XL" if model.is_xl else "2B"
        if model.is_official:
            note = f"{model.kind}, {size}, official"
        else:
            kind = known_base(model.name) if model.kind == "unknown" else model.kind
            note = f"fine-tune, {size}, of {kind}" if kind else f"fine-tune, {size}, of unknown base"
        choices.append(Choice(model.name, model.name, note))
    return tuple(choices)


def canonical_name(root: Path, typed: str) -> str | None:
    """Return the folder name that a short name means: "xl-turbo" is acestep-v15-xl-turbo; None when none does."""
    from woodshed.models.checkpoints import choose_model, find_checkpoints

    try:
        return choose_model(find_checkpoints(root), typed).name
    except CheckpointError:
        return None


def is_base_unknown(root: Path, name: str) -> bool:
    """Tell whether neither the model's files nor its name say what it descends from."""
    from woodshed.models.checkpoints import choose_model, find_checkpoints

    return choose_model(find_checkpoints(root), name).kind == "unknown"


def recommended(choices: tuple[Choice, ...]) -> str:
    """Return the model to suggest."""
    names = [choice.word for choice in choices]
    return next((name for name in RECOMMENDED if name in names), names[0])


def found_lines(root: Path, width: int) -> list[Line]:
    """Return what a checkpoint folder holds, for people.

    Raises:
        CheckpointError: when it holds no usable model.
    """
    found = look(root)
    rows = [(choice.title, "", choice.note) for choice in model_choices(root)]
    widest = max(len(name) for name, _, _ in rows)
    lines = columns([(name.ljust(widest), note, "") for name, _, note in rows], width)
    for part, path in (("The VAE", found.vae), ("The text encoder", found.text_encoder)):
        if path is None:
            lines += paragraph(f"{part} is missing in {root}: training works, preprocessing needs it.", width, "note")
    for name, problems in found.unusable.items():
        lines += paragraph(f"{name} cannot be used: {' '.join(problems)}", width, "note")
    return lines


def base_question(model: str, default: str, width: int) -> Ask:
    """Return the question what a fine-tune descends from."""
    said = f"{model} does not say what it descends from. Shift and steps for playing the adapter depend on it."
    return Ask(
        "Base of the fine-tune", tuple(paragraph(said, width)), BASES, default, f"takes {default}", is_open=False
    )
