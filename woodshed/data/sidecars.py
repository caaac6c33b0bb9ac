"""Files beside a song that describe it: song.json, song.txt, song.caption.txt and song.lyrics.txt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from woodshed.data.fields import FACTS, OTHER_NAMES, facts_of, facts_of_words
from woodshed.data.text_files import read_json_text, read_text
from woodshed.errors import DataError
from woodshed.settings.declare import did_you_mean

Facts = dict[str, Any]


def read_sidecars(song: Path) -> list[tuple[str, Facts]]:
    """Return what the files beside a song say, each with its file's name, the strongest first.

    Raises:
        DataError: with every problem of all of them, naming file and line.
    """
    problems: list[str] = []
    found: list[tuple[str, Facts]] = []
    for ending, read in READERS.items():
        path = song.with_name(song.stem + ending)
        if not path.is_file():
            continue
        try:
            found.append((path.name, read(path)))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return found


def _read_json(path: Path) -> Facts:
    """Read an object with the fields of one sample of the dataset JSON."""
    content = read_json_text(path)
    if not isinstance(content, dict) or "samples" in content:
        what = "a whole dataset" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path} must describe one song, as an object of fields; it holds {what}.")
    problems: list[str] = []
    fields: Facts = {OTHER_NAMES.get(str(name), str(name)): value for name, value in content.items()}
    facts = facts_of(fields, problems)
    _refuse(problems, path)
    return facts


def _read_fields(path: Path) -> Facts:
    """Read lines of `field: value`; lyrics go on until the next field."""
    fields: dict[str, list[str]] = {}
    problems: list[str] = []
    present = ""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name, colon, value = line.partition(":")
        key = _field_name(name) if colon else ""
        if key in fields:
            problems.append(f"line {number}: {key} is said a second time.")
        elif key:
            present = key
            fields[key] = [value.strip()]
        elif present == "lyrics":
            fields[present].append(line.rstrip())
        elif line.strip():
            problems.append(f"line {number}: {_misplaced(name if colon else '')}")
    words = {name: "\n".join(lines).strip("\n") for name, lines in fields.items()}
    facts = facts_of_words(words, problems)
    _refuse(problems, path)
    return facts


def _field_name(written: str) -> str:
    """Return the field that the beginning of a line names, "" for none; an indented line names none."""
    name = written.strip().lower().replace(" ", "_")
    name = OTHER_NAMES.get(name, name)
    is_indented = written[:1].isspace()
    return name if name in FACTS and not is_indented else ""


def _misplaced(name: str) -> str:
    if name.strip():
        known = [*FACTS, *OTHER_NAMES]
        return f"there is no field {name.strip()[:40]}.{did_you_mean(name.strip().lower(), known)} {KNOWN}"
    return f"expected `field: value`. {KNOWN} A file that is a caption alone is called song.caption.txt."


KNOWN = f"Fields are {', '.join(FACTS)}."


def _read_caption(path: Path) -> Facts:
    """Read a caption; its line breaks are spaces."""
    return _one_field("caption", " ".join(read_text(path).split()), path)


def _read_lyrics(path: Path) -> Facts:
    return _one_field("lyrics", read_text(path), path)


def _one_field(name: str, text: str, path: Path) -> Facts:
    problems: list[str] = []
    facts = facts_of({name: text}, problems)
    _refuse(problems, path)
    return facts


def _refuse(problems: list[str], path: Path) -> None:
    if problems:
        raise DataError(*(f"{path}, {problem}" for problem in problems))


READERS: dict[str, Callable[[Path], Facts]] = {
    ".json": _read_json,
    ".txt": _read_fields,
    ".caption.txt": _read_caption,
    ".lyrics.txt": _read_lyrics,
}
"""By the end of the file's name, the strongest first."""
