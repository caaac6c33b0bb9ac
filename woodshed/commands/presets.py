"""`woodshed presets`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal
from woodshed.errors import UsageError

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser

ACTIONS = {
    "list": "all presets and where they lie",
    "show": "NAME: what it sets",
    "save": "NAME [flags]: keep what these flags choose",
    "delete": "NAME",
    "import": "FILE [NAME]: one of ours (TOML) or of Side-Step (JSON)",
    "export": "NAME FILE: TOML, or JSON when FILE ends so",
}


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.files import places
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import TrainSettings

    said = "; ".join(f"{action} {text}" for action, text in ACTIONS.items())
    parser.add_argument("action", choices=list(ACTIONS), metavar="ACTION", help=said)
    parser.add_argument("words", nargs="*", default=[], metavar="NAME|FILE", help="what the action works on")
    add_json_flag(parser)
    parser.add_argument("--place", choices=places(), default="user", help="where to save: yours, or ./presets")
    parser.add_argument("--replace", action="store_true", help="replace what has that name already")
    parser.add_argument("--config", type=Path, metavar="FILE", help="with save: begin with a run file")
    parser.add_argument("--preset", metavar="NAME", help="with save: begin with another preset")
    add_flags(parser, TrainSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    actions = {
        "list": _list,
        "show": _show,
        "save": _save,
        "delete": _delete,
        "import": _import,
        "export": _export,
    }
    actions[arguments.action](arguments, terminal)
    return 0


def _words(arguments: argparse.Namespace, least: int, most: int, usage: str) -> list[str]:
    """Return what stands after the action.

    Raises:
        UsageError: when it is too little or too much.
    """
    words: list[str] = arguments.words
    if least <= len(words) <= most:
        return words
    action = arguments.action
    if most == 0:
        raise UsageError(f"woodshed presets {action} takes no further words; got {' '.join(words)}.")
    listed = [name for name, value in vars(arguments).items() if isinstance(value, list) and name != "words"]
    found = f"got {' '.join(words)}" if words else "got nothing"
    hint = f" Every word behind --{listed[0].replace('_', '-')} counts as one of its values." if listed else ""
    raise UsageError(f"Say which preset to {action}: woodshed presets {action} {usage}; {found}.{hint}")


def _list(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from woodshed.settings.files import find_presets

    _words(arguments, 0, 0, "")
    found = dict(sorted(find_presets().items()))
    if "json" in arguments:
        terminal.data(json.dumps(found, indent=1))
        return
    for name, place in found.items():
        terminal.say(f"{name:<20} {place}")


def _show(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from woodshed.settings.files import preset_values

    (name,) = _words(arguments, 1, 1, "NAME")
    values = preset_values(name)
    if "json" in arguments:
        terminal.data(json.dumps(values, indent=1))
        return
    _say_values(values, terminal)


def _say_values(values: Mapping[str, Any], terminal: Terminal) -> None:
    for name, value in values.items():
        terminal.say(f"{name} = {value}")
    if not values:
        terminal.say("This preset changes nothing: it is the defaults.")


def _save(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from woodshed.settings.files import preset_of, save_preset, stand_ins
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import TrainSettings

    (name,) = _words(arguments, 1, 1, "NAME [flags]")
    resolved = resolve(TrainSettings, [stand_ins(TrainSettings), *layers(arguments, TrainSettings)])
    values = preset_of(resolved)
    path = save_preset(name, values, place=arguments.place, replace="replace" in arguments)
    _say_values(values, terminal)
    terminal.say(f"Saved as {path}")


def _delete(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from woodshed.settings.files import delete_preset

    (name,) = _words(arguments, 1, 1, "NAME")
    terminal.say(f"Deleted {delete_preset(name)}")


def _import(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from woodshed.settings.files import read_foreign_preset, save_preset

    source, *given = _words(arguments, 1, 2, "FILE [NAME]")
    found = read_foreign_preset(Path(source))
    name = given[0] if given else Path(source).stem
    path = save_preset(name, found.values, place=arguments.place, replace="replace" in arguments)
    _say_values(found.values, terminal)
    for sentence in found.left_out:
        terminal.hint(sentence)
    terminal.say(f"Saved as {path}")


def _export(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from woodshed.settings.files import export_preset

    name, target = _words(arguments, 2, 2, "NAME FILE")
    export_preset(name, Path(target), replace="replace" in arguments)
    terminal.say(f"Wrote {target}")


COMMAND = Command("presets", "List, show, save, delete, import and export presets.", _build, _run)
