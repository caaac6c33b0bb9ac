"""`woodshed presets`."""

import argparse
from typing import TYPE_CHECKING

from woodshed.commands.command import Command
from woodshed.console import Terminal
from woodshed.errors import UsageError

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:  # noqa: ARG001 - every command is built alike
    parser.add_argument("action", choices=["list", "show"], help="list all presets, or show what one sets")
    parser.add_argument("name", nargs="?", help="the preset to show")


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.files import find_presets, preset_values

    if arguments.action == "list":
        for name, place in sorted(find_presets().items()):
            terminal.say(f"{name:<20} {place}")
        return 0
    if "name" not in arguments:
        raise UsageError("Say which preset to show: woodshed presets show NAME.")
    values = preset_values(arguments.name)
    for name, value in values.items():
        terminal.say(f"{name} = {value}")
    if not values:
        terminal.say("This preset changes nothing: it is the defaults.")
    return 0


COMMAND = Command("presets", "List the presets, or show what one sets.", _build, _run)
