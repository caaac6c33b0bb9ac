"""`woodshed train`."""

import argparse
from typing import TYPE_CHECKING

from woodshed.commands.command import INTERRUPTED, Command, add_run_file_flags, layers
from woodshed.console import Terminal
from woodshed.errors import ElsewhereError, SettingsError, UserError
from woodshed.interrupt import Stopper

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import TrainSettings

    add_run_file_flags(parser)
    parser.add_argument("--preset", metavar="NAME", help="a preset; the run file and flags win over it")
    add_flags(parser, TrainSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import TrainSettings

    chosen = layers(arguments, TrainSettings)
    try:
        resolved = resolve(TrainSettings, chosen)
    except SettingsError as error:
        raise _with_preflight(error) from None
    from woodshed.monitor.views import watch
    from woodshed.training.loop import train
    from woodshed.training.team import own_place

    place = own_place()
    try:
        with Stopper(terminal, is_launched=place.size > 1, is_quiet=not place.leads) as stopper:
            events = train(resolved.settings, origins=resolved.origins, should_stop=stopper.is_asked)
            if not place.leads:
                *_, last = events
                return INTERRUPTED if getattr(last, "was_interrupted", False) else 0
            finished = watch(events, resolved.settings, terminal, origins=resolved.origins, ask_to_stop=stopper.ask)
    except ElsewhereError as error:
        return error.exit_code
    if finished.was_interrupted:
        terminal.say(f"Stopped; the state is saved. Go on with: --resume-from {finished.adapter}")
        return INTERRUPTED
    return 0


def _with_preflight(error: SettingsError) -> UserError:
    """Add what else is wrong (device, model, dataset, targets) to refused settings, so that one message says all."""
    from woodshed.settings.schema import TrainSettings

    if not isinstance(error.usable, TrainSettings):
        return error
    from woodshed.training.preflight import check

    try:
        check(error.usable)
    except UserError as more:
        return UserError(*error.problems, *more.problems)
    return error


COMMAND = Command("train", "Train an adapter on preprocessed songs.", _build, _run)
