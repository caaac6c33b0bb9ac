"""What a subcommand is, and what several of them share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.declare import Settings
    from woodshed.settings.flags import Parser
    from woodshed.settings.resolve import Layer

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    what: str  # one line for the list of commands
    build: "Callable[[Parser, bool], None]"  # adds the flags; the bool asks for every one in the help
    run: Callable[[argparse.Namespace, Terminal], int]  # returns the exit code


def add_run_file_flags(parser: "Parser") -> None:
    """Add what every command that runs a job takes beside its settings."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a run file (TOML); flags win over it")
    parser.add_argument("--yes", action="store_true", help="ask nothing")


def add_json_flag(parser: "Parser") -> None:
    """Add the flag of commands that report something."""
    parser.add_argument("--json", action="store_true", help="print machine-readable results")


def layers(arguments: argparse.Namespace, kind: "type[Settings]") -> "list[Layer]":
    """Return where the settings of a command come from, weakest first."""
    from woodshed.settings.files import preset_file, preset_layer, run_file_layer, user_layer
    from woodshed.settings.flags import flag_layer
    from woodshed.settings.strangers import require_near_places

    found, typed = [user_layer(kind)], flag_layer(arguments, kind)
    if "preset" in arguments:
        found.append(preset_layer(arguments.preset))
        if file := preset_file(arguments.preset):
            require_near_places(file, found[-1], kind, typed.values)
    if "config" in arguments:
        found.append(run_file_layer(arguments.config, kind))
        require_near_places(arguments.config, found[-1], kind, typed.values)
    found.append(typed)
    return found
