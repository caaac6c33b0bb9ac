"""What the wizard can start: a command, the settings it asks for, and how to run it. Handed in from above."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from woodshed.settings.declare import REQUIRED, Settings, setting
from woodshed.settings.schema import TrainSettings

SHARED_FLAGS = frozenset({"help", "help_all", "plain", "json", "yes", "config", "preset"})


@dataclass(frozen=True)
class Job:
    """One command as the wizard knows it."""

    name: str  # of the command
    what: str
    kind: type[Settings]  # every setting to ask for
    run: Callable[[Sequence[str]], int]  # with the words that follow the command's name; returns the exit code
    positionals: tuple[str, ...] = ()  # settings that are written without a flag
    switches: frozenset[str] = frozenset()  # on-off flags without a `--no-` form
    has_presets: bool = False


Run = Callable[[Sequence[str]], int]


def job_of(name: str, what: str, kind: type[Settings] | None, parser: argparse.ArgumentParser, run: Run) -> Job:
    """Make a job of a command.

    Args:
        name, what: the command's.
        kind: its settings; None when all it takes stands in the parser.
        parser: what else it takes is asked for as well.
        run: runs it.
    """
    known = kind or Settings
    others = [
        action
        for action in parser._actions
        if action.dest not in known.model_fields and action.dest not in SHARED_FLAGS
    ]
    fields: dict[str, Any] = {action.dest: _field(action) for action in others}
    positionals = tuple(action.dest for action in others if not action.option_strings)
    has_presets = issubclass(known, TrainSettings) and any(action.dest == "preset" for action in parser._actions)
    extended = create_model(known.__name__, __base__=known, __module__=__name__, **fields) if fields else known
    switches = frozenset(action.dest for action in others if action.nargs == 0)
    return Job(name, what, extended, run, positionals, switches, has_presets)


def _field(action: argparse.Action) -> tuple[Any, Any]:
    """Return type and declaration of what a parser asks for beside the settings."""
    is_required = action.required
    kind: Any = str
    default: Any = REQUIRED if is_required else ""
    if action.choices:
        words = tuple(str(word) for word in action.choices)
        kind = Literal[words]
        default = REQUIRED if is_required else action.default if action.default in words else words[0]
    elif action.nargs == 0:
        kind, default = bool, False
    elif action.type is Path and is_required:
        kind = Path
    text = (action.help or action.dest).replace("%%", "%")
    said = f"{text[0].upper()}{text[1:]}".rstrip(".") + "."
    title = action.dest.replace("_", " ").capitalize()
    return kind, setting(default, title, said, why=said, section="Required" if is_required else "More", tier="basic")
