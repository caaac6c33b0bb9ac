"""What a file of settings from elsewhere may decide: everything but where on this machine something is written."""

from collections.abc import Collection
from pathlib import Path

from woodshed.errors import SettingsError
from woodshed.settings.declare import Settings
from woodshed.settings.flags import flags_of
from woodshed.settings.resolve import Layer

WRITTEN = ("output_dir", "output", "tensor_output", "log_dir")
"""Settings that name what is written."""


def require_near_places(file: Path, layer: Layer, kind: type[Settings], said: Collection[str]) -> None:
    """Refuse places to write to that a file names far from itself, unless the user names one as well.

    Near is what lies in the file's own folder, as in the run that Woodshed wrote it for, or in the current one.

    Args:
        file: where the settings come from.
        layer: what it holds.
        kind: settings of the command.
        said: names of settings that the user gave otherwise, which win.

    Raises:
        SettingsError: with the flag that says yes, for each place.
    """
    near = (file.resolve().parent, Path.cwd().resolve())
    problems = [
        f"{file} wants to write to {value}, which lies outside its own folder and the current one. "
        f"If that is where you want it, say so: {flags_of(name, kind.model_fields[name])[0]} {_quoted(value)}"
        for name in WRITTEN
        if name in kind.model_fields and name not in said
        for value in [layer.values.get(name)]
        if isinstance(value, str) and value and not any(_lies_in(value, folder) for folder in near)
    ]
    if problems:
        raise SettingsError(*problems)


def _lies_in(value: str, folder: Path) -> bool:
    try:
        return Path(value).resolve().is_relative_to(folder)
    except (OSError, ValueError):  # what is no path is refused where it is read
        return True


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value else value
