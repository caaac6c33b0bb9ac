"""Settings on disk: run files, presets and the user's own settings, all as TOML with one line per setting."""

import os
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
import tomli_w

from woodshed import __version__
from woodshed.errors import SettingsError
from woodshed.settings import rules
from woodshed.settings.declare import Settings, did_you_mean, sections
from woodshed.settings.resolve import Layer, Resolved

USER_SETTINGS = ("checkpoint_dir",)  # what is remembered for every later command
PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def config_dir() -> Path:
    """Return the user's config folder: WOODSHED_CONFIG_DIR, else the platform's own place."""
    return Path(os.environ.get("WOODSHED_CONFIG_DIR") or platformdirs.user_config_dir("woodshed", appauthor=False))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings.

    Raises:
        SettingsError: when the file is missing, unreadable, or not TOML; with the line where it stops making sense.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as text: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error


def run_file_layer(path: Path, kind: type[Settings]) -> Layer:
    """Return the settings of a run file as a layer.

    Raises:
        SettingsError: when the file cannot be read or names settings of no command.
    """
    values = read_toml(path)
    unknown = [name for name in values if name not in kind.model_fields]
    if unknown:
        raise SettingsError(
            *(f"{path}: there is no setting called {name}.{did_you_mean(name, kind.model_fields)}" for name in unknown)
        )
    return Layer(path.name, values)


def user_layer(kind: type[Settings]) -> Layer:
    """Return what the user chose once for every command: the checkpoint directory."""
    path = config_dir() / "settings.toml"
    values = read_toml(path) if path.is_file() else {}
    kept = {name: value for name, value in values.items() if name in USER_SETTINGS and name in kind.model_fields}
    return Layer("your user settings", kept)


def run_file_text(resolved: Resolved[Any]) -> str:
    """Return a run file that repeats these settings, each line with the origin of its value.

    A value that follows another setting (alpha = 2 x rank) is written as a comment, so that it goes on following.
    """
    settings = resolved.settings
    lines = [f"# Written by Woodshed {__version__}. `woodshed train --config` with this file repeats the run.", ""]
    for section, names in sections(type(settings)).items():
        values = (_line(name, getattr(settings, name), resolved.origins[name]) for name in names)
        lines += [f"# {section}", *values, ""]
    return "\n".join(lines)


def _line(name: str, value: Any, origin: str) -> str:
    if value is None:
        return f"# {name} is not set"
    if isinstance(value, Path):
        value = str(value)
    text = tomli_w.dumps({name: list(value) if isinstance(value, tuple) else value}, multiline_strings=False)
    line = " ".join(text.split())
    return f"# {line}  # {origin}" if origin in rules.FOLLOWED else f"{line}  # {origin}"


def preset_folders() -> dict[str, Path]:
    """Return where presets are looked for, first match wins: the project's folder, then the user's."""
    return {"project": Path("presets"), "user": config_dir() / "presets"}


def built_in_presets() -> dict[str, str]:
    """Return the TOML text of every built-in preset by name."""
    folder = resources.files("woodshed.settings") / "presets"
    return {
        item.name.removesuffix(".toml"): item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".toml")
    }


def find_presets() -> dict[str, str]:
    """Return every preset name with where it lies ("built in", "user" or "project"); nearer places win."""
    found = dict.fromkeys(built_in_presets(), "built in")
    for place, folder in reversed(preset_folders().items()):
        found |= dict.fromkeys((path.stem for path in sorted(folder.glob("*.toml"))), place)
    return found


def preset_values(name: str) -> Mapping[str, Any]:
    """Return what a preset sets, and nothing else.

    Raises:
        SettingsError: when there is no such preset, naming those there are.
    """
    known = find_presets()
    if not PRESET_NAME.fullmatch(name) or name not in known:
        raise SettingsError(
            f"There is no preset called {name}.{did_you_mean(name, known)} There are: {', '.join(sorted(known))}."
        )
    place = known[name]
    if place == "built in":
        return tomllib.loads(built_in_presets()[name])
    return read_toml(preset_folders()[place] / f"{name}.toml")


def preset_layer(name: str) -> Layer:
    """Return a preset as a layer."""
    return Layer(f"preset {name}", preset_values(name))
