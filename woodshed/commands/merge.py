"""`woodshed merge`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import MergeSettings

    parser.add_argument("adapters", type=Path, nargs="+", help="folders or files, made here or by other trainers")
    add_json_flag(parser)
    add_flags(parser, MergeSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import MergeSettings

    settings = resolve(MergeSettings, layers(arguments, MergeSettings)).settings
    from woodshed.adapters.merge import merge_adapters, read_parts
    from woodshed.models.checkpoints import choose_model, find_checkpoints

    checkpoint = choose_model(find_checkpoints(settings.checkpoint_dir), settings.model)
    parts = read_parts(arguments.adapters, settings.strength, checkpoint)
    done = merge_adapters(checkpoint, parts, settings.output)
    if "json" in arguments:
        report = {"path": str(done.folder), "changed": done.changed, "copied": done.copied, "kept": done.kept}
        terminal.data(json.dumps(report, indent=1))
        return 0
    terminal.say(f"Wrote {done.folder}")
    terminal.say(str(done))
    return 0


COMMAND = Command("merge", "Put adapters into the weights of a model of their own.", _build, _run)
