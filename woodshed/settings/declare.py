"""How a setting is declared: once, with everything that flags, wizard, run files and docs need to know about it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

Tier = Literal["basic", "advanced"]

LONGEST_NAME = 255  # bytes of a file's name, on every usual file system
REQUIRED: Any = ...  # the setting has no default: the user must choose


@dataclass(frozen=True)
class Declaration:
    """What a setting says about itself beyond its type, default and range."""

    title: str  # as the wizard and the reference call it
    what: str  # one sentence: what it does
    why: str  # one sentence: why you would change it
    section: str
    tier: Tier
    unit: str = ""
    source: str = ""  # where a number comes from that we did not choose ourselves
    flags: tuple[str, ...] = ()  # further spellings of the flag
    default_text: str = ""  # how the docs write a default that the value alone does not explain
    coming: str = ""  # not empty: changing it is refused with this sentence, because its effect is not built yet


def setting(  # the one place that spells out what a setting may declare
    default: Any,
    title: str,
    what: str,
    *,
    why: str,
    section: str,
    tier: Tier = "advanced",
    at_least: float | None = None,
    at_most: float | None = None,
    more_than: float | None = None,
    less_than: float | None = None,
    unit: str = "",
    source: str = "",
    flags: tuple[str, ...] = (),
    default_text: str = "",
    coming: str = "",
) -> Any:
    """Declare one setting as a pydantic field; its type stands in the class, everything else here."""
    declaration = Declaration(title, what, why, section, tier, unit, source, flags, default_text, coming)
    is_number = any(bound is not None for bound in (at_least, at_most, more_than, less_than))
    field: Any = Field(
        default,
        title=title,
        description=what,
        ge=at_least,
        le=at_most,
        gt=more_than,
        lt=less_than,
        allow_inf_nan=False if is_number and not isinstance(default, int) else None,
    )
    field.metadata.append(declaration)
    return field


class Settings(BaseModel):
    """A frozen set of settings that forbids unknown names; the base of one class per command."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _refuse_impossible_paths(cls, value: Any) -> Any:
        """No file system knows such names, and asking one for them ends in an error instead of a no."""
        for path in value if isinstance(value, tuple) else (value,):
            parts = path.parts if isinstance(path, Path) else ()
            if any("\0" in part or len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in parts):
                raise ValueError(f"a path whose every part has at most {LONGEST_NAME} bytes")
        return value


def declaration_of(field: FieldInfo) -> Declaration:
    """Return what the setting behind a pydantic field declared."""
    return next(item for item in field.metadata if isinstance(item, Declaration))


def declarations(settings: type[Settings]) -> dict[str, Declaration]:
    """Return every setting of a command by name, in the order of declaration."""
    return {name: declaration_of(field) for name, field in settings.model_fields.items()}


def sections(settings: type[Settings]) -> dict[str, list[str]]:
    """Return setting names by section, sections in the order of their first setting."""
    grouped: dict[str, list[str]] = {}
    for name, declaration in declarations(settings).items():
        grouped.setdefault(declaration.section, []).append(name)
    return grouped


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the words a setting accepts, or () when it accepts more than a list of words."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return tuple(str(word) for word in get_args(kind))
    return ()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the nearest known word, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
