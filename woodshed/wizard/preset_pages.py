"""Presets in the wizard: which are offered, and the page that shows, loads, deletes, imports and exports them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from woodshed.errors import SettingsError
from woodshed.settings.files import (
    Place,
    built_in_presets,
    check_preset_name,
    delete_preset,
    export_preset,
    find_presets,
    preset_folders,
    preset_values,
    read_foreign_preset,
    save_preset,
)
from woodshed.settings.rules import FAMILY_NAMES, FAMILY_SETTINGS
from woodshed.wizard.dialog import BackError, Dialog, RefusedError
from woodshed.wizard.face import Ask, Choice, Line
from woodshed.wizard.layout import columns
from woodshed.wizard.questions import read_path, shown

IMPORT = "import a file"  # with spaces, so that no preset is called like it


REPLACE_WHY = "Yes overwrites what is there; no leaves it as it is."
PLACE_WHY = "Yours are there in every folder you work in. A project's lie beside its songs and win over yours."


def families_of(values: Mapping[str, Any], *, is_built_in: bool) -> tuple[str, ...]:
    """Return the kinds of adapter that a preset is for.

    It says so itself, or was saved from a training of one kind: then what it sets for some kinds only tells which. The
    built-in ones are made for every kind unless they name one; what another kind does not know does nothing there.
    """
    every = tuple(FAMILY_SETTINGS)
    if "adapter_type" in values:
        return (str(values["adapter_type"]),)
    if is_built_in:
        return every
    own = {name for names in FAMILY_SETTINGS.values() for name in names if name in values}
    return tuple(family for family in every if own <= {*FAMILY_SETTINGS[family]}) or every


def is_for_every_family(families: Sequence[str]) -> bool:
    """Tell whether a preset suits whatever is trained."""
    return len(families) == len(FAMILY_SETTINGS)


def offered_presets(adapter_type: str, *, keep: str | None = None) -> dict[str, str]:
    """Return the presets that suit a kind of adapter, each with a word on what it is for.

    Args:
        adapter_type: the kind.
        keep: the one that is loaded already, which stays whatever it is for.
    """
    texts = built_in_presets()
    found: dict[str, str] = {}
    for name, place in sorted(find_presets().items(), key=_by_size):
        try:
            values = preset_values(name)
        except SettingsError:
            continue  # broken: the presets page says so
        is_built_in = place == "built in"
        if name == keep or adapter_type in families_of(values, is_built_in=is_built_in):
            found[name] = _note(texts[name]) if is_built_in else f"{place}: {_summary(values)}"
    return found


def _by_size(item: tuple[str, str]) -> int:
    """Sort names with a number behind the others and by it, so that 8 GB come before 12."""
    number = re.search(r"\d+", item[0])
    return int(number[0]) if number else 0


def _note(text: str) -> str:
    """Return the first sentence of a built-in preset's comment."""
    return text.splitlines()[0].removeprefix("# ").rstrip(".")


def _summary(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shown(_plain(value))}" for name, value in values.items()) or "the defaults"


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def preset_lines(values: Mapping[str, Any], width: int) -> list[Line]:
    """Return what a preset sets, as lines."""
    rows = [(name, shown(_plain(value)), "") for name, value in values.items()]
    return columns(rows or [("nothing", "it is the defaults", "")], width)


def save_page(dialog: Dialog, values: Mapping[str, Any], suggestion: str) -> str:
    """Ask for a name and a place, and save a preset; return its name.

    Raises:
        BackError: when the user thinks better of it.
    """
    dialog.show(preset_lines(values, dialog.face.width))

    def read(typed: str) -> str:
        name = typed or suggestion
        try:
            check_preset_name(name)
            if name.lower() in built_in_presets():
                raise SettingsError(f"{name} is the name of a built-in preset. Choose another.")
        except SettingsError as error:
            raise RefusedError(*error.problems) from None
        return name

    ask = Ask("Name of the preset", default=suggestion, enter=f"takes {suggestion}" if suggestion else "")
    name = dialog.ask(ask, read, why="Letters, digits, - and _: a file name that works on every system.")
    place = _ask_place(dialog)
    folder = preset_folders()[place]
    taken = [path.stem for path in folder.glob("*.toml") if path.stem.lower() == name.lower()]
    if taken and not dialog.confirm(
        f"There is a preset {taken[0]} there already. Replace it?", default=False, why=REPLACE_WHY
    ):
        raise BackError
    path = save_preset(name, values, place=place, replace=bool(taken))
    dialog.say(f"Saved as {path}")
    return name


def _ask_place(dialog: Dialog) -> Place:
    folders = preset_folders()
    choices = (
        Choice("user", "yours", f"for every project: {folders['user']}"),
        Choice("project", "project", f"for this folder: {folders['project']}"),
    )
    word = dialog.choose(Ask("Where to", choices=choices, default="user", enter="takes yours"), why=PLACE_WHY)
    return "project" if word == "project" else "user"


def presets_page(dialog: Dialog) -> str | None:
    """Show and keep presets; return the name of one to train with.

    Raises:
        BackError: when the user goes back to the menu.
    """
    while True:
        found = sorted(find_presets().items(), key=_by_size)
        choices = [Choice(name, name, _place_and_kind(name, place)) for name, place in found]
        choices.append(Choice(IMPORT, "Import a file", "a preset of Woodshed (TOML) or Side-Step (JSON)"))
        ask = Ask("Presets", choices=tuple(choices), is_menu=True)
        word = dialog.choose(ask, why="Take one to see what it sets, to train with it, to export or to delete it.")
        try:
            if word == IMPORT:
                _import(dialog)
            elif _one_preset(dialog, word):
                return word
        except BackError:
            continue
        except SettingsError as error:
            dialog.problem(*error.problems)


def _place_and_kind(name: str, place: str) -> str:
    try:
        families = families_of(preset_values(name), is_built_in=place == "built in")
    except SettingsError:
        return f"{place}, cannot be read"
    kinds = (
        "any adapter" if is_for_every_family(families) else ", ".join(FAMILY_NAMES.get(kind, kind) for kind in families)
    )
    return f"{place}, {kinds}"


def _one_preset(dialog: Dialog, name: str) -> bool:
    """Show a preset and ask what to do with it; return whether to train with it."""
    values = preset_values(name)
    dialog.show(preset_lines(values, dialog.face.width))
    choices = [
        Choice("train", "Train with it", "choose the rest, beginning with this preset"),
        Choice("export", "Export it", "to a TOML or JSON file"),
    ]
    if find_presets()[name] != "built in":
        choices.append(Choice("delete", "Delete it"))
    ask = Ask(name, choices=tuple(choices), default="train", enter="trains with it", is_menu=True)
    word = dialog.choose(ask, why="Training with it asks the usual questions; Enter then keeps what the preset sets.")
    if word == "export":
        target = _ask_path(dialog, "File to write", f"{name}.toml")
        question = f"{target} exists. Replace it?"
        replace = target.exists() and dialog.confirm(question, default=False, why=REPLACE_WHY)
        export_preset(name, target, replace=replace)
        dialog.say(f"Wrote {target}")
    elif word == "delete" and dialog.confirm(
        f"Delete {name} for good?", default=False, why="There is no way to bring it back."
    ):
        dialog.say(f"Deleted {delete_preset(name)}")
    return word == "train"


def _import(dialog: Dialog) -> None:
    source = _ask_path(dialog, "File to read", "")
    found = read_foreign_preset(source)
    dialog.note(*found.left_out)
    save_page(dialog, found.values, source.stem)


def _ask_path(dialog: Dialog, title: str, suggestion: str) -> Path:
    def read(typed: str) -> Path:
        if not (typed or suggestion):
            raise RefusedError("Type the path of a file.")
        return read_path(typed or suggestion)

    ask = Ask(title, default=suggestion, enter=f"takes {suggestion}" if suggestion else "", is_path=True)
    return dialog.ask(ask, read, why="A file that ends in .json is JSON, any other is TOML. Tab completes paths.")
