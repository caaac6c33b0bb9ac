"""`woodshed models`."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from woodshed.commands.command import Command, add_json_flag, layers
from woodshed.console import Terminal, printable
from woodshed.errors import UsageError

if TYPE_CHECKING:
    from woodshed.models.fetch import Arrived, Complete, Looked, Source
    from woodshed.models.hub import Hub
    from woodshed.settings.flags import Parser
    from woodshed.settings.schema import ModelsSettings

GET = "get"


def _build(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import ModelsSettings

    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="get NAME",
        help="fetch models from huggingface.co, such as base, xl-turbo or vae; without it models are listed",
    )
    add_json_flag(parser)
    add_flags(parser, ModelsSettings, show_all=show_all)


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import ModelsSettings

    settings = resolve(ModelsSettings, layers(arguments, ModelsSettings)).settings
    first, *names = arguments.words or [""]
    if first == GET:
        return _get(names, settings, terminal, as_json="json" in arguments)
    if first:
        raise UsageError(f"woodshed models lists them, and woodshed models {GET} NAME fetches; got {first}.")
    given = [name for name in ("repo", "subfolder", "revision", "replace") if name in arguments]
    if given:
        raise UsageError(f"--{given[0]} belongs to woodshed models {GET}.")
    _list(settings, terminal, as_json="json" in arguments)
    return 0


def _list(settings: "ModelsSettings", terminal: Terminal, *, as_json: bool) -> None:
    from woodshed.models.checkpoints import find_checkpoints

    found = find_checkpoints(settings.checkpoint_dir)
    rows = [
        {"name": model.name, "kind": model.kind, "size": "XL" if model.is_xl else "2B", "official": model.is_official}
        for model in found.models
    ]
    if as_json:
        terminal.data(json.dumps({"root": str(found.root), "models": rows}, indent=1))
        return
    for row in rows:
        origin = "official" if row["official"] else "fine-tune"
        terminal.say(f"{row['name']:<32} {row['kind']:<8} {row['size']:<3} {origin}")
    for part, path in (("VAE", found.vae), ("text encoder", found.text_encoder)):
        if path is None:
            terminal.hint(f"The {part} is missing in {found.root}; preprocessing needs it.")


def _get(names: Sequence[str], settings: "ModelsSettings", terminal: Terminal, *, as_json: bool) -> int:
    """Fetch what was named, and what every model needs beside it."""
    from woodshed.models.disk import gib
    from woodshed.models.fetch import Complete, Growing, fetch_models
    from woodshed.monitor.progress import LiveBlock

    sources = _sources(names, settings)
    done = []
    block = LiveBlock(terminal) if terminal.is_live and not as_json else None
    try:
        for event in fetch_models(settings.checkpoint_dir, sources, connect(), replace=settings.replace):
            if isinstance(event, Growing):
                if block is not None:
                    block.show("fetching", event.done, event.size, gib(event.done), event.name)
                continue
            if isinstance(event, Complete):
                source = event.source
                done.append({"folder": str(event.folder), "repository": source.repository, "commit": event.commit})
            if not as_json:
                _say(event, terminal)
    finally:
        if block is not None:
            block.stop()
    if as_json:
        terminal.data(json.dumps({"fetched": done}, indent=1))
    return 0


def connect() -> "Hub":
    """Return the hub that models come from."""
    from woodshed.models.hub import HuggingFace

    return HuggingFace()


def _sources(names: Sequence[str], settings: "ModelsSettings") -> "list[Source]":
    """Return what to fetch: the models that were named, and VAE and text encoder where they are missing.

    Raises:
        UserError: when a name is not known, or nothing is named.
    """
    from woodshed.models.fetch import SHARED, community_source, official_source

    revision = settings.revision or None
    if settings.repo:
        if len(names) > 1:
            raise UsageError(f"--repo takes one name, the folder to fetch into; got {' '.join(names)}.")
        found = [community_source(settings.repo, names[0] if names else "", settings.subfolder, revision)]
    elif settings.subfolder:
        raise UsageError("--subfolder belongs to --repo.")
    elif not names:
        raise UsageError(f"Say which model to fetch: woodshed models {GET} base. Or name a repository with --repo.")
    else:
        found = [official_source(name, revision) for name in dict.fromkeys(names)]
    beside = [name for name in SHARED if not (settings.checkpoint_dir / name).is_dir()]
    fetched = {source.folder for source in found}
    return found + [official_source(name) for name in beside if name not in fetched]


def _say(event: "Looked | Arrived | Complete", terminal: Terminal) -> None:
    from woodshed.models.disk import gib
    from woodshed.models.fetch import Arrived, Looked

    source = event.source
    if isinstance(event, Looked):
        count = f"{event.files} file{'' if event.files == 1 else 's'}, {gib(event.size)}"
        terminal.say(f"{source.folder} from {source.repository}: {count if event.files else 'everything is there'}")
        if event.left_out:
            terminal.say(printable(f"  left out, because they are code or not needed: {', '.join(event.left_out)}"))
    elif isinstance(event, Arrived):
        terminal.say(f"  {event.name}  {gib(event.size)}  digest as published")
    else:
        terminal.say(f"{event.folder} is complete, at commit {printable(event.commit[:12])}.")


COMMAND = Command("models", "List the checkpoints in a folder, or fetch some.", _build, _run)
