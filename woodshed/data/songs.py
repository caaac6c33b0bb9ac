"""Which songs there are and what is known about each: from an ACE-Step dataset JSON, a folder, or both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, get_args

from woodshed.data.audio import AUDIO_SUFFIXES
from woodshed.errors import DataError

TagPosition = Literal["prepend", "append", "replace"]
NOTHING = ("", "n/a", "none", "null", "unknown")
MOST_NAMED = 8


@dataclass(frozen=True)
class Song:
    """One audio file and what its owner says about it; empty means not known."""

    path: Path
    caption: str = ""
    genre: str = ""
    lyrics: str = ""
    language: str = ""
    bpm: str = ""
    keyscale: str = ""
    timesignature: str = ""
    is_instrumental: bool = False
    custom_tag: str = ""  # this song's own trigger tag; the dataset's when empty
    prompt_override: str = ""  # "caption" or "genre": which of the two to use whatever the genre ratio says


@dataclass(frozen=True)
class SongList:
    """All songs of a dataset, with what holds for all of them."""

    songs: tuple[Song, ...]
    custom_tag: str = ""
    tag_position: TagPosition | None = None
    genre_ratio: int | None = None  # percent
    name: str = ""
    notices: tuple[str, ...] = field(default=())


def find_songs(audio_dir: Path | None, dataset_json: Path | None) -> SongList:
    """Collect the songs of a folder, of a dataset JSON, or of a folder described by a JSON.

    With both, the JSON says which songs are used, and the folder is where files are looked for whose path in the JSON
    does not exist any more.

    Raises:
        DataError: with every problem: missing folders and files, wrong types, no songs.
    """
    if audio_dir is None and dataset_json is None:
        raise DataError("Say which songs to preprocess: --audio-dir FOLDER, --dataset-json FILE, or both.")
    in_folder = list_audio(audio_dir) if audio_dir is not None else ()
    if dataset_json is not None:
        return _from_json(dataset_json, audio_dir, in_folder)
    songs = tuple(Song(path, caption=_words_of(path)) for path in in_folder)
    notice = "The songs have no captions: their file names stand in. A dataset JSON with captions teaches more."
    return SongList(songs, notices=(notice,))


def list_audio(folder: Path) -> tuple[Path, ...]:
    """Return every audio file below a folder, sorted.

    Raises:
        DataError: when there is no folder, or no audio in it, saying what was seen instead.
    """
    if not folder.is_dir():
        raise DataError(f"There is no audio folder {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    songs = tuple(path for path in files if path.suffix.lower() in AUDIO_SUFFIXES)
    if not songs:
        seen = sorted({path.suffix.lower() or "no ending" for path in files})
        found = f"saw files with {', '.join(seen[:MOST_NAMED])}" if seen else "the folder is empty"
        raise DataError(f"No songs found in {folder}: looked for {' '.join(AUDIO_SUFFIXES)} and {found}.")
    return songs


def _words_of(path: Path) -> str:
    """Return a file name as words: 'my_song-01' becomes 'my song 01'."""
    return " ".join(path.stem.replace("_", " ").replace("-", " ").split())


def _from_json(path: Path, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> SongList:
    samples, metadata = _read_json(path)
    by_name: dict[str, list[Path]] = {}
    for file in in_folder:
        by_name.setdefault(file.name, []).append(file)
    problems: list[str] = []
    songs = []
    for number, sample in enumerate(samples, 1):
        try:
            songs.append(_song(sample, path, by_name))
        except DataError as error:
            problems += [f"{path}, sample {number}: {problem}" for problem in error.problems]
    if not samples:
        problems.append(f"{path} names no songs.")
    result = None
    try:
        result = _whole(metadata, path, tuple(songs))
    except DataError as error:
        problems += error.problems
    if problems or result is None:
        raise DataError(*problems)
    used = {song.path.resolve() for song in songs}
    unused = [file for file in in_folder if file.resolve() not in used]
    notices = []
    if unused and audio_dir is not None:
        named = ", ".join(str(file.relative_to(audio_dir)) for file in unused[:MOST_NAMED])
        more = f" and {len(unused) - MOST_NAMED} more" if len(unused) > MOST_NAMED else ""
        notices.append(f"{len(unused)} files in {audio_dir} are not in {path.name} and are left out: {named}{more}.")
    return SongList(**result.__dict__ | {"notices": tuple(notices)})


def _read_json(path: Path) -> tuple[list[Any], Mapping[str, Any]]:
    """Return the samples and the metadata of any of the three shapes: a list, `samples`, or both keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"There is no dataset JSON {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    samples = content.get("samples") if isinstance(content, dict) else content
    metadata = content.get("metadata", {}) if isinstance(content, dict) else {}
    if not isinstance(samples, list) or not isinstance(metadata, dict):
        raise DataError(f'{path} is no dataset: expected a list of songs, or an object with a list "samples".')
    return samples, metadata


def _whole(metadata: Mapping[str, Any], path: Path, songs: tuple[Song, ...]) -> SongList:
    position = _text(metadata, "tag_position").lower()
    if position and position not in get_args(TagPosition):
        raise DataError(f"{path}: tag_position must be prepend, append or replace; got {position}.")
    ratio = _text(metadata, "genre_ratio")
    if ratio and not (ratio.isdecimal() and int(ratio) <= 100):
        raise DataError(f"{path}: genre_ratio must be a whole number from 0 to 100; got {ratio}.")
    return SongList(
        songs,
        custom_tag=_text(metadata, "custom_tag"),
        tag_position=position or None,  # type: ignore[arg-type] # checked above
        genre_ratio=int(ratio) if ratio else None,
        name=_text(metadata, "name"),
    )


def _song(sample: Any, json_path: Path, by_name: Mapping[str, list[Path]]) -> Song:
    """Read one entry of the samples.

    Raises:
        DataError: with everything that is wrong with it.
    """
    if not isinstance(sample, dict):
        raise DataError(f"expected an object, got {type(sample).__name__}.")
    problems: list[str] = []
    values: dict[str, str] = {}
    for name in ("caption", "genre", "language", "bpm", "keyscale", "timesignature", "custom_tag", "prompt_override"):
        try:
            values[name] = _text(sample, name)
        except DataError as error:
            problems += error.problems
    try:
        file = _audio_path(sample, json_path, by_name)
        lyrics = _lyrics(sample)
        is_instrumental = _flag(sample, "is_instrumental")
    except DataError as error:
        raise DataError(*problems, *error.problems) from error
    if problems:
        raise DataError(*problems)
    return Song(file, lyrics=lyrics, is_instrumental=is_instrumental, **values)


def _lyrics(sample: Mapping[str, Any]) -> str:
    """Return the lyrics as they were meant for the model: formatted ones first, line breaks kept."""
    for name in ("formatted_lyrics", "lyrics", "raw_lyrics"):
        value = sample.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{name} must be text; got {type(value).__name__}.")
        if value and value.strip():
            return value.strip()
    return ""


def _flag(sample: Mapping[str, Any], name: str) -> bool:
    value = sample.get(name, False)
    if not isinstance(value, bool | None):
        raise DataError(f"{name} must be true or false; got {value!r}.")
    return bool(value)


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return a field as text, "" where it is missing, null or says so."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{name} must be text or a number; got {type(value).__name__}.")
    text = f"{value:g}" if isinstance(value, float) else str(value).strip()
    return "" if text.lower() in NOTHING else text


def _audio_path(sample: Mapping[str, Any], json_path: Path, by_name: Mapping[str, list[Path]]) -> Path:
    """Find a sample's audio: as written, beside the JSON, or by its file name in the audio folder."""
    written = sample.get("audio_path") or sample.get("filename")
    if not isinstance(written, str) or not written:
        raise DataError("audio_path is missing: it must name the audio file.")
    name = PureWindowsPath(written).name if "\\" in written else PurePosixPath(written).name
    for candidate in (Path(written), json_path.parent / written, json_path.parent / name):
        if candidate.is_file():
            return candidate
    matches = by_name.get(name, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(f"{written} does not exist, and {len(matches)} files in the audio folder are called {name}.")
    raise DataError(f"{written} does not exist. Give the folder that holds it with --audio-dir.")
