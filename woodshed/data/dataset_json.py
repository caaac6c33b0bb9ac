"""The ACE-Step dataset JSON: a list of songs, an object with `samples`, or one with `metadata` beside them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from woodshed.data.audio_files import AudioFiles
from woodshed.data.fields import choice_of, facts_of, percent_of, text_of
from woodshed.data.songs import Song, SongList, TagPosition, Unusable
from woodshed.errors import DataError, collecting

ORIGIN = "dataset JSON"
MOST_NAMED = 50  # problems of songs, where none can be used


def read_dataset_json(path: Path, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> SongList:
    """Read the songs that a JSON describes.

    Args:
        path: the JSON.
        audio_dir: where audio is looked for that is not where the JSON says.
        in_folder: the audio files in there.

    Returns:
        The songs that can be used, and what is wrong with the others.

    Raises:
        DataError: with every problem, each naming the sample and the field, when no song can be used or something is
            wrong with the whole.
    """
    samples, metadata = _read(path)
    files = AudioFiles(path.parent, audio_dir, in_folder)
    problems: list[str] = [] if samples else [f"{path} names no songs."]
    songs: list[Song] = []
    unusable: list[Unusable] = []
    found = SongList()
    for number, sample in enumerate(samples, 1):
        try:
            songs.append(_read_song(sample, files))
        except DataError as error:
            said = tuple(f"{path}, sample {number}: {problem}" for problem in error.problems)
            unusable.append(Unusable(path, said))
    try:
        found = _read_metadata(metadata)
    except DataError as error:
        problems += [f"{path}, metadata: {problem}" for problem in error.problems]
    if problems or not songs:
        named = [problem for item in unusable for problem in item.problems]
        if len(named) > MOST_NAMED:
            named[MOST_NAMED:] = [f"{path}: there are {len(named) - MOST_NAMED} more problems like these."]
        raise DataError(*named, *problems)
    return replace(found, songs=tuple(songs), unusable=tuple(unusable))


def _read(path: Path) -> tuple[list[Any], Mapping[str, Any]]:
    """Return the samples and the metadata of any of the three shapes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"There is no dataset JSON {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError:
        raise DataError(f"{path} is not valid JSON for a dataset: it is nested too deeply.") from None
    samples = content.get("samples") if isinstance(content, dict) else content
    metadata = (content.get("metadata") or {}) if isinstance(content, dict) else {}
    if not isinstance(samples, list) or not isinstance(metadata, dict):
        raise DataError(f'{path} is no dataset: expected a list of songs, or an object with a list "samples".')
    return samples, metadata


def _read_metadata(metadata: Mapping[str, Any]) -> SongList:
    """Read what holds for all songs."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name in ("custom_tag", "name"):
        with collecting(problems):
            values[name] = text_of(metadata, name)
    with collecting(problems):
        values["tag_position"] = choice_of(metadata, "tag_position", get_args(TagPosition))
    with collecting(problems):
        values["genre_ratio"] = percent_of(metadata, "genre_ratio")
    if problems:
        raise DataError(*problems)
    return SongList(**values)


def _read_song(sample: Any, files: AudioFiles) -> Song:
    """Read one entry of the samples.

    Raises:
        DataError: with everything that is wrong with it.
    """
    if not isinstance(sample, dict):
        raise DataError(f"expected an object, got {type(sample).__name__}.")
    problems: list[str] = []
    path = Path()
    with collecting(problems):
        path = files.find(text_of(sample, "audio_path") or text_of(sample, "filename"))
    facts = facts_of(sample, problems)
    if problems:
        raise DataError(*problems)
    return Song(path, **facts, origins=dict.fromkeys(facts, ORIGIN))
