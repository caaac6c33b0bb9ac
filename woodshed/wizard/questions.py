"""A setting as a question: what is shown, what Enter means, and what an answer is read as."""

import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from woodshed.settings.declare import choices_of, declaration_of
from woodshed.wizard.dialog import YES_NO, RefusedError, match_choice
from woodshed.wizard.draft import Draft
from woodshed.wizard.face import Ask, Choice
from woodshed.wizard.layout import paragraph, readable

EMPTY = "-"  # typed, it empties a setting that may be empty


def shown(value: Any) -> str:
    """Return a value as people write it."""
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short_number(value)
    if isinstance(value, tuple):
        return " ".join(shown(item) for item in value)
    return str(value)


def short_number(value: float) -> str:
    """Return 0.0001 as 1e-4 and 128.0 as 128, losing no digit."""
    text = repr(value)
    if not math.isfinite(value) or (1e-3 <= abs(value) < 1e16) or value == 0:
        return text.removesuffix(".0")
    exact = Decimal(text).normalize()
    digits = "".join(map(str, exact.as_tuple().digits))
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[0]}{'.' if len(digits) > 1 else ''}{digits[1:]}e{exact.adjusted()}"


def setting_question(draft: Draft, name: str, width: int, *, suggestion: str | None = None) -> Ask:
    """Return the question for a setting.

    Args:
        draft: what has been chosen so far.
        name: of the setting.
        width: columns there are.
        suggestion: what Enter takes while a required setting has no value.
    """
    field = draft.kind.model_fields[name]
    said = declaration_of(field)
    now = draft.look()
    value, origin = shown(getattr(now.settings, name)), now.origins[name]
    text = paragraph(readable(said.what), width)
    if said.coming:
        text += paragraph(said.coming, width, "note")
    reason = draft.idle().get(name)
    if reason:
        text += paragraph(f"Has no effect here: {readable(reason)}.", width, "note")
    is_missing = draft.is_missing(name)
    if is_missing:
        default, enter = suggestion or "", f"takes {suggestion}" if suggestion else ""
    else:
        default, enter = value, f"keeps {value} ({origin})"
    hints = ["? why", "b back", "q menu"]
    if may_be_empty(field) and value != "none" and not is_missing:
        hints.insert(1, f"{EMPTY} for none")
    is_unit_said = not said.unit or said.unit.split()[-1] in said.title.lower()
    unit = "" if is_unit_said else f" ({said.unit})"
    return Ask(
        said.title + unit,
        tuple(text),
        setting_choices(field),
        default,
        enter,
        tuple(hints),
        is_path=is_path(field),
    )


def setting_choices(field: FieldInfo) -> tuple[Choice, ...]:
    """Return the words a setting accepts as choices; none when it accepts more than words."""
    if field.annotation is bool:
        return YES_NO
    return tuple(Choice(word, word) for word in choices_of(field))


def is_path(field: FieldInfo) -> bool:
    """Tell whether a setting is a path."""
    return Path in _types(field)


def may_be_empty(field: FieldInfo) -> bool:
    """Tell whether a setting can be none: an optional path, or text whose default is empty."""
    return type(None) in _types(field) or field.default in ("", ())


def _types(field: FieldInfo) -> tuple[Any, ...]:
    members = get_args(field.annotation)
    return members or (field.annotation,)


def read_answer(field: FieldInfo, typed: str) -> Any:
    """Return what was typed as a flag would give it; whether it is in range is for the settings to say.

    Raises:
        RefusedError: when it is none of the choices.
    """
    choices = setting_choices(field)
    if choices:
        word = match_choice(choices, typed)
        return word == "yes" if field.annotation is bool else word
    if typed == EMPTY and may_be_empty(field):
        return ""
    if is_path(field) or field.annotation is str:
        typed = _unquoted(typed)
    if is_path(field):
        return at_home(typed)
    if float in _types(field) and re.fullmatch(r"-?\d+,\d+", typed):
        return typed.replace(",", ".")  # a decimal comma
    return typed


def _unquoted(typed: str) -> str:
    """Drop the quotes that terminals put around a dropped file, and that make `"b"` a word instead of a key."""
    if len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "\"'":
        return typed[1:-1]
    return typed


def at_home(typed: str) -> str:
    """Put the home folder in the place of a leading ~, where there is such a user."""
    try:
        return str(Path(typed).expanduser()) if typed.startswith("~") else typed
    except RuntimeError:
        return typed


def read_path(typed: str) -> Path:
    """Return a path as typed or dropped into the terminal."""
    return Path(at_home(_unquoted(typed)))


def refuse_empty(draft: Draft, name: str, suggestion: str | None) -> None:
    """Refuse Enter alone where there is nothing to take.

    Raises:
        RefusedError: saying what is asked for.
    """
    if suggestion:
        return
    said = declaration_of(draft.kind.model_fields[name])
    raise RefusedError(f"{said.title} has no default: {readable(said.what[0].lower() + said.what[1:])}")
