"""`woodshed models`."""

import argparse
import json
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import CheckpointSettings

    add_json_flag(parser)
    add_flags(parser, CheckpointSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import CheckpointSettings

    settings = resolve(CheckpointSettings, layers(arguments, CheckpointSettings)).settings
    from woodshed.models.checkpoints import find_checkpoints

    found = find_checkpoints(settings.checkpoint_dir)
    rows = [
        {"name": model.name, "kind": model.kind, "size": "XL" if model.is_xl else "2B", "official": model.is_official}
        for model in found.models
    ]
    if "json" in arguments:
        terminal.data(json.dumps({"root": str(found.root), "models": rows}, indent=1))
        return 0
    for row in rows:
        origin = "official" if row["official"] else "fine-tune"
        terminal.say(f"{row['name']:<32} {row['kind']:<8} {row['size']:<3} {origin}")
    for part, path in (("VAE", found.vae), ("text encoder", found.text_encoder)):
        if path is None:
            terminal.hint(f"The {part} is missing in {found.root}; preprocessing needs it.")
    return 0


COMMAND = Command("models", "List the checkpoints in a folder.", _build, _run)
