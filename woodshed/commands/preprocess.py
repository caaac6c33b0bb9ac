"""`woodshed preprocess`."""

import argparse
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_run_file_flags, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import PreprocessSettings

    add_run_file_flags(parser)
    add_flags(parser, PreprocessSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import PreprocessSettings

    resolved = resolve(PreprocessSettings, layers(arguments, PreprocessSettings))
    from woodshed.data.encode import preprocess
    from woodshed.monitor.encoding import watch_encoding

    return watch_encoding(preprocess(resolved.settings), terminal)


COMMAND = Command("preprocess", "Turn songs and their metadata into tensors.", _build, _run)
