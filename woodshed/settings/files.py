"""Settings on disk: run files, presets and the user's own settings, all as TOML with one line per setting."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import platformdirs
import tomli_w

from woodshed import __version__
from woodshed.errors import SettingsError
from woodshed.settings import rules
from woodshed.settings.declare import Settings, choices_of, declarations, did_you_mean, sections
from woodshed.settings.resolve import Layer, Resolved, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.storage import write_text

USER_SETTINGS = ("checkpoint_dir",)  # what is remembered for every later command
PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEVICE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
)
"""File names that mean a device on Windows, whatever ending they have."""
OF_ONE_RUN = frozenset({"checkpoint_dir", "model", "dataset_dir", "output_dir", "resume_from"})
"""Settings that belong to one run and one machine; no preset holds them."""
PLACES = frozenset({"log_dir", "init_from", "targets_from", "sample_prompts"})
"""Settings that name files or folders; a preset of one's own may hold them, one from elsewhere may not."""
PLACEHOLDER = "(not chosen yet)"

Place = Literal["user", "project"]


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
    except RecursionError:
        raise SettingsError(f"{path} is not valid TOML for settings: it is nested too deeply.") from None
    except ValueError as error:  # also a number of more digits than Python reads
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
    values = read_user_settings()
    kept = {name: value for name, value in values.items() if name in USER_SETTINGS and name in kind.model_fields}
    return Layer("your user settings", kept)


def read_user_settings() -> dict[str, Any]:
    """Return everything that is remembered for the user: `USER_SETTINGS`, and tables that only the wizard reads."""
    path = config_dir() / "settings.toml"
    return read_toml(path) if path.is_file() else {}


def save_user_settings(changes: Mapping[str, Any]) -> Path:
    """Remember these values beside what is there already, and return the file; a table gains entries, keeps the rest.

    Raises:
        SettingsError: when the folder cannot be written.
    """
    values = read_user_settings()
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, Mapping) else value
    path = config_dir() / "settings.toml"
    _write(path, "# What Woodshed remembers for you.\n" + tomli_w.dumps(values))
    return path


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}.") from error


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
    file = preset_file(name)
    return tomllib.loads(built_in_presets()[name]) if file is None else read_toml(file)


def preset_file(name: str) -> Path | None:
    """Return where a preset that exists lies; None for one that is built in."""
    place = find_presets()[name]
    return None if place == "built in" else preset_folders()[place] / f"{name}.toml"


def preset_layer(name: str) -> Layer:
    """Return a preset as a layer."""
    return Layer(f"preset {name}", preset_values(name))


def stand_ins(kind: type[Settings]) -> Layer:
    """Return a valid value for every required setting, so that the others can be resolved before those are chosen."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.is_required():
            words = choices_of(field)
            values[name] = words[0] if words else 1 if field.annotation in (int, float) else PLACEHOLDER
    return Layer(PLACEHOLDER, values)


def preset_of(resolved: Resolved[TrainSettings]) -> dict[str, Any]:
    """Return the smallest preset that gives these settings, whatever run it is used for.

    It holds what differs from the defaults. A value that follows another one is left to follow; one that was chosen
    against what it would follow is kept, even where it equals the default.
    """
    settings = resolved.settings
    wanted = {name: value for name, value in settings if name not in OF_ONE_RUN}
    chosen = {
        name: value
        for name, value in wanted.items()
        if value != type(settings).model_fields[name].default and resolved.origins[name] not in rules.FOLLOWED
    }
    again = resolve(TrainSettings, [stand_ins(TrainSettings), Layer("preset", chosen)]).settings
    moved = {name: value for name, value in wanted.items() if getattr(again, name) != value}
    return {name: _plain(value) for name, value in (chosen | moved).items()}


def _plain(value: Any) -> Any:
    """Return a value as TOML and JSON know it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def check_preset_name(name: str) -> None:
    """Refuse a name that is not a good file name everywhere.

    Raises:
        SettingsError: saying what is accepted.
    """
    if not PRESET_NAME.fullmatch(name):
        raise SettingsError(
            f"A preset cannot be called {name or 'nothing'}: use up to 64 letters, digits, - and _, "
            "and begin with a letter or digit."
        )
    if name.lower() in DEVICE_NAMES:
        raise SettingsError(f"A preset cannot be called {name}: that is the name of a device on Windows.")


def save_preset(name: str, values: Mapping[str, Any], *, place: Place = "user", replace: bool = False) -> Path:
    """Write a preset and return its file.

    Raises:
        SettingsError: when the name is unsafe, built in, or taken and `replace` is false.
    """
    check_preset_name(name)
    if name.lower() in built_in_presets():
        raise SettingsError(f"{name} is the name of a built-in preset. Choose another.")
    folder = preset_folders()[place]
    taken = {path.stem.lower(): path for path in folder.glob("*.toml")}
    older = taken.get(name.lower())  # Windows and macOS do not tell Mine from mine
    if older is not None and not replace:
        raise SettingsError(f"There is a preset {older.stem} in {folder} already. Choose another name, or replace it.")
    if older is not None and older.stem != name:
        older.unlink()
    _write(folder / f"{name}.toml", preset_text(values))
    return folder / f"{name}.toml"


def preset_text(values: Mapping[str, Any]) -> str:
    """Return a preset as TOML."""
    said = f"# A preset for `woodshed train`, written by Woodshed {__version__}: only what differs from the defaults.\n"
    table: str = tomli_w.dumps({name: _plain(value) for name, value in values.items()})
    return said + table


def delete_preset(name: str) -> Path:
    """Delete a preset of the project or the user, and return the file that is gone.

    Raises:
        SettingsError: when there is none, or it is built in.
    """
    preset_values(name)
    path = preset_file(name)
    if path is None:
        raise SettingsError(f"{name} is built in and cannot be deleted.")
    path.unlink()
    return path


def export_preset(name: str, path: Path, *, replace: bool = False) -> None:
    """Write a preset to a file: JSON when the name ends so, else TOML.

    Raises:
        SettingsError: when there is no such preset, or the file exists and `replace` is false.
    """
    values = {key: _plain(value) for key, value in preset_values(name).items()}
    if path.exists() and not replace:
        raise SettingsError(f"{path} exists already. Choose another file, or replace it.")
    is_json = path.suffix.lower() == ".json"
    _write(path, json.dumps(values, indent=1) + "\n" if is_json else preset_text(values))


@dataclass(frozen=True)
class ImportedPreset:
    """What a foreign file came to."""

    values: Mapping[str, Any]
    left_out: tuple[str, ...]  # one sentence for each entry that was not taken


def read_foreign_preset(path: Path) -> ImportedPreset:
    """Read a preset of ours (TOML) or of Side-Step (a JSON object whose keys are called like the flags).

    Nothing in the file is executed. Unknown entries, and those that belong to one run, are left out and named.

    Raises:
        SettingsError: when the file cannot be read, or holds values that no setting accepts.
    """
    known = _names_by_flag()
    values: dict[str, Any] = {}
    left_out: list[str] = []
    for key, value in _read_table(path).items():
        name = known.get(key.strip().lstrip("-").replace("-", "_").lower())
        if name is None:
            left_out.append(f"{key} is not a setting; it was left out.{did_you_mean(key, known)}")
        elif name in OF_ONE_RUN:
            left_out.append(f"{key} belongs to one run; it was left out.")
        elif name in PLACES:
            left_out.append(f"{key} names a place on somebody else's machine; it was left out.")
        elif value is not None:
            values[name] = value
    resolved = resolve(TrainSettings, [stand_ins(TrainSettings), Layer(path.name, values)])
    kept = preset_of(resolved)
    return ImportedPreset(kept, tuple(left_out))


def _names_by_flag() -> dict[str, str]:
    """Return every spelling of every training setting."""
    spellings = {name: name for name in TrainSettings.model_fields}
    for name, said in declarations(TrainSettings).items():
        spellings |= {flag.lstrip("-").replace("-", "_"): name for flag in said.flags}
    return spellings


def _read_table(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".json":
        return read_toml(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"There is no file {path}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} holds no JSON object of settings.")
    return content


def places() -> tuple[Place, ...]:
    """Return where a preset can be saved."""
    return get_args(Place)
