"""`woodshed generate`."""

import argparse
import json
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, add_run_file_flags, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import GenerateSettings

    add_run_file_flags(parser)
    add_json_flag(parser)
    add_flags(parser, GenerateSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import GenerateSettings

    settings = resolve(GenerateSettings, layers(arguments, GenerateSettings)).settings
    from woodshed.monitor.generation import watch_generation
    from woodshed.sampling.events import Written
    from woodshed.sampling.generate import generate

    if "json" not in arguments:
        watch_generation(generate(settings), terminal)
        return 0
    written = [event for event in generate(settings) if isinstance(event, Written)]
    terminal.data(json.dumps({event.version: str(event.path) for event in written}, indent=1))
    return 0


COMMAND = Command("generate", "Make music with the base model or with adapters.", _build, _run)
