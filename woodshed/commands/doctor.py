"""`woodshed doctor`."""

import argparse
import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal, printable
from woodshed.errors import UserError

if TYPE_CHECKING:
    from woodshed.doctor.finding import Finding
    from woodshed.settings.flags import Parser
    from woodshed.settings.resolve import Layer
    from woodshed.settings.schema import DoctorSettings, TrainSettings


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import DoctorSettings

    parser.add_argument("--config", type=Path, metavar="FILE", help="the run file (TOML) of a training that is planned")
    parser.add_argument("--preset", metavar="NAME", help="the preset of a training that is planned")
    add_json_flag(parser)
    add_flags(parser, DoctorSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.schema import TrainSettings

    chosen = layers(arguments, TrainSettings)
    settings = _settings(arguments, chosen)
    planned, refused = _planned(chosen)
    from woodshed.doctor.examine import examine
    from woodshed.doctor.finding import is_ready, problems

    found: list[Finding] = []
    is_json = "json" in arguments
    for finding in itertools.chain(examine(settings, planned), problems("run", refused)):
        if not is_json:
            _say(finding, terminal, is_first=finding.topic not in {known.topic for known in found})
        found.append(finding)
    if is_json:
        report = {"ready": is_ready(found), "findings": [asdict(item) for item in found]}
        terminal.data(json.dumps(report, indent=1))
    else:
        _say_sum(found, terminal)
    return 0 if is_ready(found) else 1


def _settings(arguments: argparse.Namespace, chosen: "Sequence[Layer]") -> "DoctorSettings":
    """Return what to look at: what was typed, and what preset and run file say of the same things."""
    from woodshed.settings.flags import flag_layer
    from woodshed.settings.resolve import Layer, resolve
    from woodshed.settings.schema import DoctorSettings

    known = [
        Layer(
            layer.origin, {name: value for name, value in layer.values.items() if name in DoctorSettings.model_fields}
        )
        for layer in chosen
    ]
    return resolve(DoctorSettings, [*known, flag_layer(arguments, DoctorSettings)]).settings


def _planned(chosen: "Sequence[Layer]") -> "tuple[TrainSettings | None, tuple[str, ...]]":
    """Return the training that was named, where a model and a dataset were, and what is wrong with its settings."""
    from woodshed.settings.files import PLACEHOLDER
    from woodshed.settings.resolve import Layer, resolve
    from woodshed.settings.schema import TrainSettings

    named = {name for layer in chosen for name, value in layer.values.items() if value}
    if not {"model", "dataset_dir"} <= named:
        return None, ()
    try:
        return resolve(TrainSettings, [Layer(PLACEHOLDER, {"output_dir": PLACEHOLDER}), *chosen]).settings, ()
    except UserError as error:
        usable = getattr(error, "usable", None)
        return (usable if isinstance(usable, TrainSettings) else None), error.problems


def _say(finding: "Finding", terminal: Terminal, *, is_first: bool) -> None:
    """Print a finding under its topic, and what mends it on a line of its own, to be copied."""
    if is_first:
        terminal.title(finding.topic.capitalize())
    speak = {"ok": terminal.say, "note": terminal.hint, "problem": terminal.problem}[finding.state]
    line = printable(f"  {finding.state:<7}  {finding.text}")
    if terminal.out.is_terminal:  # a file or another program gets a finding a line
        whole_words = textwrap.TextWrapper(
            terminal.out.width, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False
        )
        line = whole_words.fill(line)
    speak(line)
    if finding.remedy:
        terminal.say(printable(f"           -> {finding.remedy}"))


def _say_sum(found: "Sequence[Finding]", terminal: Terminal) -> None:
    counts = Counter(finding.state for finding in found)
    problems, notes = counts["problem"], counts["note"]
    if problems:
        terminal.problem(f"{problems} problem{'' if problems == 1 else 's'} to mend, and {notes} to know.")
    else:
        terminal.say(f"Everything that was looked at is ready; {notes} note{'' if notes == 1 else 's'}.")


COMMAND = Command("doctor", "Is this machine, checkpoint, dataset and run ready?", _build, _run)
