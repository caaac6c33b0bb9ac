"""`woodshed inspect`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.analysis.report import Report, Table
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import InspectSettings

    parser.add_argument("path", type=Path, help="an adapter, model, dataset, run, estimate or song")
    add_json_flag(parser)
    add_flags(parser, InspectSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import InspectSettings

    settings = resolve(InspectSettings, layers(arguments, InspectSettings)).settings
    from woodshed.analysis.inspection import inspect_path

    report = inspect_path(arguments.path, settings)
    if "json" in arguments:
        terminal.data(json.dumps(report.as_json(), indent=1))
    else:
        show_report(report, terminal)
    return 0


def show_report(report: "Report", terminal: Terminal) -> None:
    """Print what was found, for people."""
    terminal.say(f"{report.path}: {report.kind}")
    width = max(map(len, report.facts))
    for name, value in report.facts.items():
        terminal.say(f"  {name:<{width}}  {_text(name, value)}")
    for table in report.tables:
        terminal.say()
        for line in _table_lines(table):
            terminal.say(line)
    if report.notices:
        terminal.say()
    for notice in report.notices:
        terminal.hint(_text("", notice))


def _text(name: str, value: Any) -> str:
    """Return a value as people read it; what a file says may hold anything, so only what prints is shown."""
    if name == "bytes" and isinstance(value, int):
        return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:,.1f} kB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(key, item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return " ".join(_text("", item) for item in value) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    words = "" if value is None else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _table_lines(table: "Table") -> list[str]:
    """Return a table with its columns as wide as what they hold, numbers to the right."""
    rows = ([_text(name, value) for name, value in zip(table.columns, row, strict=True)] for row in table.rows)
    cells = [list(table.columns), *rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(table.columns))]
    numbers = [any(isinstance(row[place], int | float) for row in table.rows) for place in range(len(table.columns))]
    lines = [table.title]
    for row in cells:
        fitted = (
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numbers, strict=True)
        )
        lines.append(("  " + "  ".join(fitted)).rstrip())
    return lines


COMMAND = Command("inspect", "What is in an adapter, checkpoint, dataset or run.", _build, _run)
