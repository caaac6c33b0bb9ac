"""A table that describes songs: a CSV with a column for the file and one for each field."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from woodshed.data.audio_files import AudioFiles
from woodshed.data.fields import FACTS, OTHER_NAMES, facts_of_words
from woodshed.data.songs import real_path
from woodshed.data.text_files import read_text
from woodshed.errors import DataError, collecting
from woodshed.settings.declare import did_you_mean

METADATA_CSV = "metadata.csv"  # what is read without being asked, in the audio folder
FILE_COLUMNS = ("file", "filename", "file_name", "audio_path", "path")
SEPARATORS = ",;\t"

Row = tuple[int, list[str]]  # the line that it begins in, and its cells


def read_metadata_csv(path: Path, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> dict[Path, dict[str, Any]]:
    """Return what a table says about each song, by the song's resolved path.

    Args:
        path: the table; commas, semicolons or tabs between its columns.
        audio_dir: where audio is looked for that is not beside the table.
        in_folder: the audio files in there.

    Raises:
        DataError: with every problem, each naming the line.
    """
    text = read_text(path)
    first = text.lstrip("\n").split("\n", 1)[0]
    separator = max(SEPARATORS, key=first.count)
    problems: list[str] = []
    rows = _rows(text, separator, path, problems)
    _, header = next(rows, (1, []))
    columns = _columns(header, path)
    files = AudioFiles(path.parent, audio_dir, in_folder)
    found: dict[Path, dict[str, Any]] = {}
    lines: dict[Path, int] = {}
    for line, cells in rows:
        wrong: list[str] = []
        if len(cells) != len(columns):
            wrong.append(
                f"it has {len(cells)} cells and the table {len(columns)} columns. Quote cells that hold {separator!r}."
            )
        else:
            song, facts = _read_row(dict(zip(columns, cells, strict=True)), files, wrong)
            if song in lines:
                wrong.append(f"{song.name} is already described in line {lines[song]}.")
            if not wrong:
                found[song], lines[song] = facts, line
        problems += [f"{path}, line {line}: {problem}" for problem in wrong]
    if problems:
        raise DataError(*problems)
    return found


def _rows(text: str, separator: str, path: Path, problems: list[str]) -> Iterator[Row]:
    """Yield the rows that are not empty; a broken quotation ends the table."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problems.append(
                f"{path}, line {line}: the row cannot be read ({error}). Look for a quotation mark that is not closed."
            )
            return
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _columns(header: list[str], path: Path) -> list[str]:
    """Return the fields of the columns, "file" for the one that names the song.

    Raises:
        DataError: when a column is unknown, there twice, or names no file.
    """
    known = (*FILE_COLUMNS, *FACTS, *OTHER_NAMES)
    names = [cell.strip().lower().replace(" ", "_") for cell in header]
    problems = [
        f"{path}, line 1: there is no field for the column {name[:40] or 'without a name'}.{did_you_mean(name, known)} "
        f"Columns are file, {', '.join(FACTS)}."
        for name in names
        if name not in known
    ]
    columns = ["file" if name in FILE_COLUMNS else OTHER_NAMES.get(name, name) for name in names]
    problems += [
        f"{path}, line 1: there are two columns for {name}."
        for name in dict.fromkeys(columns)
        if columns.count(name) > 1 and name in ("file", *FACTS)
    ]
    if "file" not in columns:
        problems.append(f"{path}, line 1: there is no column file, which names the song of each row.")
    if problems:
        raise DataError(*problems)
    return columns


def _read_row(row: dict[str, str], files: AudioFiles, problems: list[str]) -> tuple[Path, dict[str, Any]]:
    song = Path()
    written = row.pop("file").strip()
    if not written:
        problems.append("the cell of the column file is empty: it must name the song.")
    else:
        with collecting(problems):
            song = real_path(files.find(written))
    return song, facts_of_words(row, problems)
