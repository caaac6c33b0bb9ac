"""Fields that describe a song, wherever they are written: text, numbers and choices, each read the same way."""

import json
import math
from collections.abc import Mapping
from typing import Any, get_args

from woodshed.data.songs import PromptSource
from woodshed.errors import DataError, collecting

NOTHING = ("", "n/a", "none", "null", "unknown")
PLAIN_FIELDS = ("caption", "genre", "language", "keyscale", "timesignature", "custom_tag")
FACTS = (*PLAIN_FIELDS, "bpm", "lyrics", "is_instrumental", "prompt_override")
"""What can be said about a song, by the names of the dataset JSON."""
OTHER_NAMES = {
    "key": "keyscale",
    "time_signature": "timesignature",
    "tag": "custom_tag",
    "instrumental": "is_instrumental",
}
"""Shorter names that files written by hand may use."""
YES, NO = ("true", "yes", "1"), ("false", "no", "0")


def facts_of(fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return what the fields say, without those that say nothing.

    Args:
        fields: by the names in `FACTS`; others are left alone.
        problems: receives a sentence for each wrong value.
    """
    values: dict[str, Any] = {}
    for name in PLAIN_FIELDS:
        with collecting(problems):
            values[name] = text_of(fields, name)
    with collecting(problems):
        values["bpm"] = number_of(fields, "bpm")
    with collecting(problems):
        values["lyrics"] = lyrics_of(fields)
    with collecting(problems):
        values["is_instrumental"] = flag_of(fields, "is_instrumental")
    with collecting(problems):
        values["prompt_override"] = choice_of(fields, "prompt_override", get_args(PromptSource))
    return {name: value for name, value in values.items() if value not in ("", None)}


def facts_of_words(words: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Return what fields say that were all written as text, as in a table: yes and no are words there."""
    fields: dict[str, Any] = dict(words)
    written = fields.get("is_instrumental", "").strip().lower()
    if written in (*YES, *NO, *NOTHING):
        fields["is_instrumental"] = None if written in NOTHING else written in YES
    else:
        problems.append(f"is_instrumental must be yes or no; got {written[:40]}.")
        del fields["is_instrumental"]
    return facts_of(fields, problems)


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """Return a field as text, "" where it is missing, null or says so."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{name} must be text or a number; got {json.dumps(value)[:40]}.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a character (a lone surrogate). Write it again.") from None
    return "" if text.lower() in NOTHING else text


def number_of(fields: Mapping[str, Any], name: str) -> str:
    """Return a number as text, whole ones without a fraction: 120, "120" and 120.0 are all "120"."""
    text = text_of(fields, name)
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{name} must be a number; got {text}.")
    return f"{value:.10g}" if text else ""


def choice_of(fields: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    """Return one of several words in small letters, None where it is missing."""
    text = text_of(fields, name).lower()
    if text and text not in choices:
        raise DataError(f"{name} must be one of {', '.join(choices)}; got {text}.")
    return text or None


def percent_of(fields: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number from 0 to 100, None where it is missing."""
    text = number_of(fields, name)
    if text and not (text.isdecimal() and int(text) <= 100):
        raise DataError(f"{name} must be a whole number from 0 to 100; got {text}.")
    return int(text) if text else None


def flag_of(fields: Mapping[str, Any], name: str) -> bool | None:
    """Return a flag, None where it is missing."""
    value = fields.get(name)
    if not isinstance(value, bool | None):
        raise DataError(f"{name} must be true or false; got {json.dumps(value)[:40]}.")
    return value


def lyrics_of(sample: Mapping[str, Any]) -> str:
    """Return the lyrics with line breaks as the model knows them."""
    for name in ("lyrics", "formatted_lyrics", "raw_lyrics"):
        text = text_of(sample, name)
        if text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
    return ""
