"""`woodshed estimate`."""

import argparse
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, add_run_file_flags, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import EstimateSettings

    add_run_file_flags(parser)
    add_json_flag(parser)
    add_flags(parser, EstimateSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import EstimateSettings

    settings = resolve(EstimateSettings, layers(arguments, EstimateSettings)).settings
    from woodshed.analysis.estimate import estimate
    from woodshed.analysis.events import Finished
    from woodshed.monitor.estimation import watch_estimate

    if "json" not in arguments:
        watch_estimate(estimate(settings), terminal)
        return 0
    *_, last = estimate(settings)
    assert isinstance(last, Finished)
    terminal.data(last.ranking.model_dump_json(indent=1))
    return 0


COMMAND = Command("estimate", "Which layers respond to this dataset.", _build, _run)
