"""The command line: subcommands, exit codes, and the one place that catches `UserError`.

Everything heavy is imported inside the command that needs it, so that `woodshed --help` answers at once.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from woodshed import __version__
from woodshed.console import Terminal
from woodshed.errors import SettingsError, UserError
from woodshed.interrupt import Stopper

if TYPE_CHECKING:
    from woodshed.settings.declare import Settings
    from woodshed.settings.flags import Parser
    from woodshed.settings.resolve import Layer

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    what: str  # one line for the list of commands
    build: "Callable[[Parser, bool], None]"  # adds the flags; the bool asks for every one in the help
    run: Callable[[argparse.Namespace, Terminal], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns:
        0 done; 1 the user can mend it; 2 wrong usage; 130 interrupted, with the state saved.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    terminal = Terminal(plain="--plain" in words)
    try:
        return _dispatch(words, terminal)
    except UserError as error:
        for problem in error.problems:
            terminal.problem(problem)
        return error.exit_code
    except KeyboardInterrupt:
        terminal.problem("Interrupted.")
        return INTERRUPTED


def _dispatch(words: list[str], terminal: Terminal) -> int:
    if not words or words[0] in ("-h", "--help", "--help-all", "help"):
        terminal.data(_overview())
        return 0
    if words[0] == "--version":
        terminal.data(f"woodshed {__version__}")
        return 0
    from woodshed.errors import UsageError
    from woodshed.settings.declare import did_you_mean
    from woodshed.settings.flags import refuse_unknown

    command = COMMANDS.get(words[0])
    if command is None:
        raise UsageError(
            f"There is no command {words[0]}.{did_you_mean(words[0], COMMANDS)} `woodshed --help` lists the commands."
        )
    parser = build_parser(command, show_all="--help-all" in words)
    if {"-h", "--help", "--help-all"} & set(words):
        terminal.data(parser.format_help())
        return 0
    known, unknown = parser.parse_known_args(words[1:])
    if unknown:
        refuse_unknown(parser, unknown)
    return command.run(known, terminal)


def build_parser(command: Command, *, show_all: bool) -> "Parser":
    """Return the parser of one command, with the flags that every command has."""
    from woodshed.settings.flags import Parser

    parser = Parser(
        prog=f"woodshed {command.name}",
        description=command.what,
        add_help=False,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show the usual flags")
    parser.add_argument("--help-all", action="store_true", help="show every flag")
    parser.add_argument("--plain", action="store_true", help="no colour, no cursor movement")
    command.build(parser, show_all)
    return parser


def help_pages() -> str:
    """Return the full help of every command as Markdown, for docs/cli.md."""
    helps = {"woodshed": _overview()}
    for command in COMMANDS.values():
        helps[f"woodshed {command.name}"] = build_parser(command, show_all=True).format_help().rstrip()
    return "\n\n".join(f"## {name}\n\n```text\n{text}\n```" for name, text in helps.items())


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["Woodshed teaches the ACE-Step 1.5 music models a style.", "", "usage: woodshed COMMAND [flags]", ""]
    lines += [f"  {command.name:<{width}}  {command.what}" for command in COMMANDS.values()]
    return "\n".join([*lines, "", "`woodshed COMMAND --help` shows the usual flags, `--help-all` every one."])


# -- train ---------------------------------------------------------------------------------------------------------


def _build_train(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import TrainSettings

    parser.add_argument("--config", type=Path, metavar="FILE", help="a run file (TOML); flags win over it")
    parser.add_argument("--preset", metavar="NAME", help="a preset; the run file and flags win over it")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_flags(parser, TrainSettings, show_all=show_all)


def _run_train(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import TrainSettings

    layers = _layers(arguments, TrainSettings)
    try:
        resolved = resolve(TrainSettings, layers)
    except SettingsError as error:
        raise _with_preflight(error) from None
    from woodshed.monitor.views import watch
    from woodshed.training.loop import train

    with Stopper(terminal) as stopper:
        events = train(resolved.settings, origins=resolved.origins, should_stop=stopper.is_asked)
        finished = watch(events, resolved.settings, terminal)
    if finished.was_interrupted:
        terminal.say(f"Stopped; the state is saved. Go on with: --resume-from {finished.adapter}")
        return INTERRUPTED
    return 0


def _layers(arguments: argparse.Namespace, kind: "type[Settings]") -> "list[Layer]":
    """Return where the settings of a command come from, weakest first."""
    from woodshed.settings.files import preset_layer, run_file_layer, user_layer
    from woodshed.settings.flags import flag_layer

    layers = [user_layer(kind)]
    if "preset" in arguments:
        layers.append(preset_layer(arguments.preset))
    if "config" in arguments:
        layers.append(run_file_layer(arguments.config, kind))
    layers.append(flag_layer(arguments, kind))
    return layers


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


# -- preprocess ----------------------------------------------------------------------------------------------------


def _build_preprocess(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import PreprocessSettings

    parser.add_argument("--config", type=Path, metavar="FILE", help="a run file (TOML); flags win over it")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_flags(parser, PreprocessSettings, show_all=show_all)


def _run_preprocess(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import PreprocessSettings

    resolved = resolve(PreprocessSettings, _layers(arguments, PreprocessSettings))
    from woodshed.data.encode import preprocess
    from woodshed.monitor.encoding import watch_encoding

    return watch_encoding(preprocess(resolved.settings), terminal)


# -- models --------------------------------------------------------------------------------------------------------


def _build_models(parser: "Parser", show_all: bool) -> None:
    from woodshed.settings.flags import add_flags
    from woodshed.settings.schema import CheckpointSettings

    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    add_flags(parser, CheckpointSettings, show_all=show_all)


def _run_models(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.settings.resolve import resolve
    from woodshed.settings.schema import CheckpointSettings

    settings = resolve(CheckpointSettings, _layers(arguments, CheckpointSettings)).settings
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


# -- presets -------------------------------------------------------------------------------------------------------


def _build_presets(parser: "Parser", show_all: bool) -> None:  # noqa: ARG001 - every command is built alike
    parser.add_argument("action", choices=["list", "show"], help="list all presets, or show what one sets")
    parser.add_argument("name", nargs="?", help="the preset to show")


def _run_presets(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.errors import UsageError
    from woodshed.settings.files import find_presets, preset_values

    if arguments.action == "list":
        for name, place in sorted(find_presets().items()):
            terminal.say(f"{name:<20} {place}")
        return 0
    if "name" not in arguments:
        raise UsageError("Say which preset to show: woodshed presets show NAME.")
    values = preset_values(arguments.name)
    for name, value in values.items():
        terminal.say(f"{name} = {value}")
    if not values:
        terminal.say("This preset changes nothing: it is the defaults.")
    return 0


# -- demo ----------------------------------------------------------------------------------------------------------


def _build_demo(parser: "Parser", show_all: bool) -> None:  # noqa: ARG001 - every command is built alike
    parser.add_argument("folder", nargs="?", type=Path, default=Path("woodshed-demo"), help="where to work")


def _run_demo(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from woodshed.demo import run_demo

    run_demo(arguments.folder, terminal)
    return 0


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("demo", "The whole chain on a tiny built-in model and synthesized songs.", _build_demo, _run_demo),
        Command("preprocess", "Turn songs and their metadata into tensors.", _build_preprocess, _run_preprocess),
        Command("train", "Train an adapter on preprocessed songs.", _build_train, _run_train),
        Command("models", "List the checkpoints in a folder.", _build_models, _run_models),
        Command("presets", "List the presets, or show what one sets.", _build_presets, _run_presets),
    )
}

if __name__ == "__main__":
    sys.exit(main())
