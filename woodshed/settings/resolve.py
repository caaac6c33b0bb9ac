"""From many sources to one frozen set of settings: default < user settings < preset < run file < flags < answers.

Every value remembers where it came from, and all problems are reported at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from woodshed.errors import SettingsError
from woodshed.settings import rules
from woodshed.settings.declare import Settings, choices_of, declarations, did_you_mean
from woodshed.settings.schema import TrainSettings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Layer:
    """Values from one source, later layers winning over earlier ones."""

    origin: str  # "preset quick_test", "run.toml", "command line"
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Settings with the origin of each value."""

    settings: S
    origins: Mapping[str, str]  # setting name -> "default", "2 x rank", "preset quick_test", ...


def resolve(kind: type[S], layers: Sequence[Layer]) -> Resolved[S]:
    """Lay the layers over the defaults and validate the result.

    Raises:
        SettingsError: naming every unknown, missing, out-of-range and contradictory setting at once.
    """
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for layer in layers:
        for name, value in layer.values.items():
            if name not in kind.model_fields:
                problems.append(_unknown(kind, name, layer.origin))
                continue
            chosen[name] = value
            origins[name] = layer.origin
    defaults = {name: field.default for name, field in kind.model_fields.items()}
    for moved in rules.followers(chosen, defaults):
        chosen[moved.name] = moved.value
        origins[moved.name] = moved.reason
    settings, refused = _validate(kind, chosen, origins)
    problems += refused
    if settings is not None:
        problems += _refusals(settings)
    if problems or settings is None:
        raise SettingsError(*problems, usable=settings)
    return Resolved(settings, {name: origins.get(name, "default") for name in kind.model_fields})


def _validate(kind: type[S], chosen: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[S | None, list[str]]:
    """Return the settings, with refused values back at their defaults, and a sentence for each refused value.

    The settings are None when a required one is missing or refused.
    """
    try:
        return kind(**chosen), []
    except ValidationError as error:
        first: dict[str, ErrorDetails] = {}
        for detail in error.errors():  # a union reports once per member; the first says it all
            first.setdefault(str(detail["loc"][0]), detail)
        problems = [_sentence(kind, name, detail, origins) for name, detail in first.items()]
    if any(kind.model_fields[name].is_required() for name in first):
        return None, problems
    return kind(**{name: value for name, value in chosen.items() if name not in first}), problems


def _refusals(settings: Settings) -> list[str]:
    """Return why valid values cannot be used: contradictions, and settings whose effect is not built yet."""
    found = [
        said.coming
        for name, said in declarations(type(settings)).items()
        if said.coming and getattr(settings, name) != type(settings).model_fields[name].default
    ]
    if isinstance(settings, TrainSettings):
        found += rules.contradictions(settings)
    return found


def _unknown(kind: type[Settings], name: str, origin: str) -> str:
    return f"There is no setting called {name} ({origin}).{did_you_mean(name, kind.model_fields)}"


def _sentence(kind: type[Settings], name: str, detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    """Say one of pydantic's findings in our words: what must hold, what was found, and where it came from."""
    if detail["type"] == "missing":
        said = declarations(kind)[name]
        return f"{name} is required: {said.what[0].lower()}{said.what[1:]} Give it as --{name.replace('_', '-')}."
    found = detail["input"]
    shown = str(found) or "nothing"
    place = origins.get(name, "default")
    rule = _rule(kind, name, detail)
    hint = did_you_mean(found, choices_of(kind.model_fields[name])) if isinstance(found, str) else ""
    return f"{name} must {rule}; got {shown} ({place}).{hint}"


_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def _rule(kind: type[Settings], name: str, detail: ErrorDetails) -> str:
    """Return what a value must be, continuing the words "X must"."""
    problem = detail["type"]
    if problem in _BOUNDS:
        words, key = _BOUNDS[problem]
        return f"be {words} {detail['ctx'][key]:g}"
    choices = choices_of(kind.model_fields[name])
    if choices:
        return f"be one of {', '.join(choices)}"
    if len(detail["loc"]) > 1:  # one of several types, or a place in a list
        return "be auto or a number" if isinstance(detail["loc"][1], str) else "be numbers"
    if problem == "value_error":  # one of our own checks, which says what is accepted
        return f"be {detail['ctx']['error']}"
    wording = {
        "int_parsing": "be a whole number",
        "int_type": "be a whole number",
        "int_from_float": "be a whole number",
        "float_parsing": "be a number",
        "float_type": "be a number",
        "finite_number": "be a finite number",
        "bool_parsing": "be yes or no",
        "bool_type": "be yes or no",
        "string_type": "be text",
        "path_type": "be a path",
        "tuple_type": "be a list of words",
    }
    return wording.get(problem, f"be valid ({detail['msg'].lower()})")
