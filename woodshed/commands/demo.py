"""`woodshed demo`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from woodshed.commands.command import Command
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:  # noqa: ARG001 - every command is built alike
    parser.add_argument("folder", nargs="?", type=Path, default=Path("woodshed-demo"), help="where to work")


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.demo import run_demo

    run_demo(arguments.folder, terminal)
    return 0


COMMAND = Command("demo", "The whole chain: a built-in model learns an instrument.", _build, _run)
