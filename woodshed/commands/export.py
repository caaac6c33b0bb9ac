"""`woodshed export`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import ExportSettings

    parser.add_argument("adapter", type=Path, help="a folder or file, made here or by another trainer")
    add_json_flag(parser)
    add_flags(parser, ExportSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import ExportSettings

    resolved = resolve(ExportSettings, layers(arguments, ExportSettings))
    from woodshed.adapters.export import export_adapter

    done = export_adapter(arguments.adapter, resolved.settings)
    if "json" in arguments:
        report = asdict(done.verification)
        terminal.data(json.dumps({"path": str(done.path), **report, "notices": done.notices}, indent=1))
        return 0
    terminal.say(f"Wrote {done.path}")
    terminal.say(str(done.verification))
    for notice in done.notices:
        terminal.hint(notice)
    return 0


COMMAND = Command("export", "Write an adapter in another tool's format.", _build, _run)
