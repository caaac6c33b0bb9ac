"""Command-line flags, read out of the settings' declarations."""

import argparse
from collections.abc import Sequence
from typing import Any, Never

from pydantic.fields import FieldInfo

from woodshed.errors import UsageError
from woodshed.settings.declare import Settings, choices_of, declaration_of, declarations, did_you_mean, sections
from woodshed.settings.resolve import Layer


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of exiting, and says "did you mean"."""

    def error(self, message: str) -> Never:
        """Raise instead of printing the usage and leaving.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message[0].upper()}{message[1:]}. `{self.prog} --help` lists what there is.")


def flags_of(name: str, field: FieldInfo) -> list[str]:
    """Return every spelling of a setting's flag, the usual one first."""
    return [f"--{name.replace('_', '-')}", *declaration_of(field).flags]


def default_text(field: FieldInfo) -> str:
    """Return how help and docs write a setting's default."""
    said = declaration_of(field).default_text
    if said:
        return said
    if field.is_required():
        return "*(none)*"
    value = field.default
    if isinstance(value, bool):
        return "`yes`" if value else "`no`"
    if isinstance(value, tuple):
        return f"`{' '.join(value)}`"
    return f"`{value:g}`" if isinstance(value, float) and (value == 0 or abs(value) >= 1e-3) else f"`{_short(value)}`"


def _short(value: Any) -> str:
    """Write 0.0001 as 1e-4, as people do."""
    return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def add_flags(parser: argparse.ArgumentParser, kind: type[Settings], *, show_all: bool) -> None:
    """Add one flag per setting, grouped by section; the advanced ones are listed only when `show_all`.

    Values stay text here: the settings themselves convert and check them, so that all problems come out at once.
    """
    said = declarations(kind)
    for section, names in sections(kind).items():
        shown = [name for name in names if show_all or said[name].tier == "basic"]
        group = parser.add_argument_group(section) if shown else parser
        for name in names:
            _add_flag(group, name, kind.model_fields[name], is_shown=name in shown)


def _add_flag(group: Any, name: str, field: FieldInfo, *, is_shown: bool) -> None:
    said = declaration_of(field)
    plain_default = default_text(field).replace("`", "").replace("*", "")
    text = f"{said.what} (default: {plain_default})".replace("%", "%%").replace("`", "")
    options: dict[str, Any] = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "help": text if is_shown else argparse.SUPPRESS,
    }
    if field.annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        choices = choices_of(field)
        options["metavar"] = (
            "|".join(choices) if choices else (said.unit or name).split("_")[-1].upper().replace(" ", "_")
        )
        if isinstance(field.default, tuple):
            options |= {"nargs": "+", "action": "extend"}  # the flag may be given again for more
    group.add_argument(*flags_of(name, field), **options)


def flag_layer(arguments: argparse.Namespace, kind: type[Settings]) -> Layer:
    """Return what was typed as a layer of settings."""
    return Layer("command line", {name: value for name, value in vars(arguments).items() if name in kind.model_fields})


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return what was typed, in whatever order: a word behind a flag's value is still one of the command's words.

    Raises:
        UsageError: naming everything that nobody knows.
    """
    known, unknown = parser.parse_known_args(words)
    listed = [action.dest for action in parser._actions if not action.option_strings and action.nargs == "*"]
    if listed and not any(word.startswith("-") for word in unknown):  # argparse gives it those before the flags only
        setattr(known, listed[0], [*getattr(known, listed[0]), *unknown])
        return known
    if unknown:
        refuse_unknown(parser, unknown)
    return known


def refuse_unknown(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Name every argument nobody knows, each with the nearest flag.

    Raises:
        UsageError: when there is any.
    """
    known = [flag for action in parser._actions for flag in action.option_strings]
    problems = []
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("-"):
            problems.append(f"There is no flag {flag}.{did_you_mean(flag, known)}")
        else:
            problems.append(f"Nobody expected the word {word} here.")
    if problems:
        raise UsageError(*problems, f"`{parser.prog} --help-all` lists every flag.")
