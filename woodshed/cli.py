"""The command line: subcommands, exit codes, and the one place that catches `UserError`.

Everything heavy is imported inside the command that needs it, so that `woodshed --help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from woodshed import __version__
from woodshed.commands import (
    dataset,
    demo,
    doctor,
    estimate,
    export,
    generate,
    inspect,
    merge,
    models,
    preprocess,
    presets,
    train,
)
from woodshed.commands.command import INTERRUPTED, Command
from woodshed.console import NobodyReadsError, Terminal
from woodshed.errors import UserError
from woodshed.keyboard import unseen_keys

if TYPE_CHECKING:
    from woodshed.settings.flags import Parser


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
    except NobodyReadsError:  # `| head` has enough; what was not finished must not look as if it were
        terminal.lose_reader()
        return INTERRUPTED


def _dispatch(words: list[str], terminal: Terminal) -> int:
    if not [word for word in words if word != "--plain"]:
        return _open_wizard(terminal)
    if words[0] in ("-h", "--help", "--help-all", "help"):
        terminal.data(_overview())
        return 0
    if words[0] == "--version":
        terminal.data(f"woodshed {__version__}")
        return 0
    from woodshed.errors import UsageError
    from woodshed.settings.declare import did_you_mean
    from woodshed.settings.flags import parse

    command = COMMANDS.get(words[0])
    if command is None:
        raise UsageError(
            f"There is no command {words[0]}.{did_you_mean(words[0], COMMANDS)} `woodshed --help` lists the commands."
        )
    parser = build_parser(command, show_all="--help-all" in words)
    if {"-h", "--help", "--help-all"} & set(words):
        terminal.data(parser.format_help())
        return 0
    known = parse(parser, words[1:])
    with unseen_keys(terminal):
        return command.run(known, terminal)


def _open_wizard(terminal: Terminal) -> int:
    """Let the wizard start any command that reports settings, with the words it would be typed with."""
    from woodshed.settings import schema
    from woodshed.wizard.jobs import job_of
    from woodshed.wizard.session import open_wizard

    def runner(name: str) -> Callable[[Sequence[str]], int]:
        return lambda words: _dispatch([name, *words], terminal)

    jobs = {}
    for name, command in COMMANDS.items():
        kind = getattr(schema, f"{name.title()}Settings", None)
        jobs[name] = job_of(name, command.what, kind, build_parser(command, show_all=True), runner(name))
    return open_wizard(jobs, terminal)


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


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        demo.COMMAND,
        dataset.COMMAND,
        preprocess.COMMAND,
        estimate.COMMAND,
        train.COMMAND,
        generate.COMMAND,
        export.COMMAND,
        merge.COMMAND,
        inspect.COMMAND,
        models.COMMAND,
        presets.COMMAND,
        doctor.COMMAND,
    )
}

if __name__ == "__main__":
    sys.exit(main())
