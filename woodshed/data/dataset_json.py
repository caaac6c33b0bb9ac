"""The ACE-Step dataset JSON: a list of songs, an object with `samples`, or one with `metadata` beside them."""

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from woodshed.data.songs import PromptSource, Song, SongList, TagPosition
from woodshed.errors import DataError, collecting

NOTHING = ("", "n/a", "none", "null", "unknown")
PLAIN_FIELDS = ("caption", "genre", "language", "keyscale", "timesignature", "custom_tag")


def read_dataset_json(path: Path, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> SongList:
    """Read the songs that a JSON describes.

    Args:
        path: the JSON.
        audio_dir: where audio is looked for that is not where the JSON says.
        in_folder: the audio files in there.

    Raises:
        DataError: with every problem, each naming the sample and the field.
    """
    samples, metadata = _read(path)
    files = _AudioFiles(path.parent, audio_dir, in_folder)
    problems: list[str] = [] if samples else [f"{path} names no songs."]
    songs: list[Song] = []
    found = SongList()
    for number, sample in enumerate(samples, 1):
        try:
            songs.append(_read_song(sample, files))
        except DataError as error:
            problems += [f"{path}, sample {number}: {problem}" for problem in error.problems]
    try:
        found = _read_metadata(metadata)
    except DataError as error:
        problems += [f"{path}, metadata: {problem}" for problem in error.problems]
    if problems:
        raise DataError(*problems)
    return replace(found, songs=tuple(songs))


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
            values[name] = _text(metadata, name)
    with collecting(problems):
        values["tag_position"] = _choice(metadata, "tag_position", get_args(TagPosition))
    with collecting(problems):
        values["genre_ratio"] = _percent(metadata, "genre_ratio")
    if problems:
        raise DataError(*problems)
    return SongList(**values)


def _read_song(sample: Any, files: "_AudioFiles") -> Song:
    """Read one entry of the samples.

    Raises:
        DataError: with everything that is wrong with it.
    """
    if not isinstance(sample, dict):
        raise DataError(f"expected an object, got {type(sample).__name__}.")
    problems: list[str] = []
    values: dict[str, Any] = {}
    with collecting(problems):
        values["path"] = files.find(_text(sample, "audio_path") or _text(sample, "filename"))
    for name in PLAIN_FIELDS:
        with collecting(problems):
            values[name] = _text(sample, name)
    with collecting(problems):
        values["bpm"] = _number(sample, "bpm")
    with collecting(problems):
        values["lyrics"] = _lyrics(sample)
    with collecting(problems):
        values["is_instrumental"] = _flag(sample, "is_instrumental")
    with collecting(problems):
        values["prompt_override"] = _choice(sample, "prompt_override", get_args(PromptSource))
    if problems:
        raise DataError(*problems)
    return Song(**values)


def _text(fields: Mapping[str, Any], name: str) -> str:
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


def _number(fields: Mapping[str, Any], name: str) -> str:
    """Return a number as text, whole ones without a fraction: 120, "120" and 120.0 are all "120"."""
    text = _text(fields, name)
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{name} must be a number; got {text}.")
    return f"{value:.10g}" if text else ""


def _choice(fields: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    text = _text(fields, name).lower()
    if text and text not in choices:
        raise DataError(f"{name} must be one of {', '.join(choices)}; got {text}.")
    return text or None


def _percent(fields: Mapping[str, Any], name: str) -> int | None:
    text = _number(fields, name)
    if text and not (text.isdecimal() and int(text) <= 100):
        raise DataError(f"{name} must be a whole number from 0 to 100; got {text}.")
    return int(text) if text else None


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool | None):
        raise DataError(f"{name} must be true or false; got {json.dumps(value)[:40]}.")
    return bool(value)


def _lyrics(sample: Mapping[str, Any]) -> str:
    """Return the lyrics with line breaks as the model knows them."""
    for name in ("lyrics", "formatted_lyrics", "raw_lyrics"):
        text = _text(sample, name)
        if text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
    return ""


class _AudioFiles:
    """Finds a sample's audio: where the JSON says, else by its name in the audio folder."""

    def __init__(self, beside: Path, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> None:
        self._roots = (beside, Path(), *([audio_dir] if audio_dir else []))
        self._by_name: dict[str, list[Path]] = {}
        for file in in_folder:
            self._by_name.setdefault(_one_spelling(file.name), []).append(file)

    def find(self, written: str) -> Path:
        """Return the file that a JSON's path means; of several with its name, the one in the same folders.

        Raises:
            DataError: when there is none, or more than one.
        """
        if not written:
            raise DataError("audio_path is missing: it must name the audio file.")
        pure = PureWindowsPath(written) if "\\" in written else PurePosixPath(written)
        for candidate in [root / written for root in self._roots] + [self._roots[0] / pure.name]:
            if _is_file(candidate):
                return candidate
        matches = self._by_name.get(_one_spelling(pure.name), [])
        if not matches:
            raise DataError(f"{written} does not exist. Give the folder that holds it with --audio-dir.")
        likeness = [_common_tail(pure.parts, match.parts) for match in matches]
        if likeness.count(max(likeness)) > 1:
            raise DataError(f"{written} does not exist, and {len(matches)} files below --audio-dir have its name.")
        return matches[likeness.index(max(likeness))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any file can have
        return False


def _one_spelling(name: str) -> str:
    """Return a name in one Unicode form: macOS takes letters and accents apart, JSON files seldom do."""
    return unicodedata.normalize("NFC", name)


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many of the last parts two paths share."""
    count = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if _one_spelling(mine) != _one_spelling(theirs):
            break
        count += 1
    return count
