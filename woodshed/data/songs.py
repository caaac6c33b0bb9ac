"""A song and what is known about it, and the audio files of a folder."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from woodshed.data.audio import AUDIO_SUFFIXES
from woodshed.errors import DataError

TagPosition = Literal["prepend", "append", "replace"]
PromptSource = Literal["caption", "genre"]
MOST_NAMED = 8
LONGEST_NAME = 80  # characters of a file's own name that its tensors keep
LONGEST_NAME_BYTES = 160  # most file systems allow 255, of which digest and endings take their part


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
    prompt_override: PromptSource | None = None  # which of the two to use whatever the genre ratio says
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)  # where each of these was read


@dataclass(frozen=True)
class Unusable:
    """A song of which something wrong is said, so that it takes no part; the others do."""

    where: Path  # the song, or the file that says it
    problems: tuple[str, ...]


@dataclass(frozen=True)
class SongList:
    """All songs of a dataset, with what holds for all of them."""

    songs: tuple[Song, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    custom_tag: str = ""
    tag_position: TagPosition | None = None
    genre_ratio: int | None = None  # percent
    name: str = ""
    notices: tuple[str, ...] = ()


def list_audio(folder: Path) -> tuple[Path, ...]:
    """Return every audio file below a folder, sorted; hidden files and folders are left out.

    Raises:
        DataError: when there is no folder, or no audio in it, saying what was seen instead.
    """
    if not folder.is_dir():
        raise DataError(f"There is no audio folder {folder}.")
    files = sorted(path for path in folder.rglob("*") if _is_file(path) and not _is_hidden(path.relative_to(folder)))
    songs = tuple(path for path in files if path.suffix.lower() in AUDIO_SUFFIXES)
    if not songs:
        seen = sorted({path.suffix.lower() or "no ending" for path in files})
        found = f"saw files with {listed(seen)}" if seen else "the folder is empty"
        raise DataError(f"No songs found in {folder}: looked for {' '.join(AUDIO_SUFFIXES)} and {found}.")
    return songs


def real_path(path: Path) -> Path:
    """Return where a path leads; unlike `Path.resolve` it takes links that lead in a circle."""
    return Path(os.path.realpath(path))


def _is_file(path: Path) -> bool:
    """Tell what is or should be a file: a link that leads nowhere or in a circle is said to be unreadable later."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def safe_stem(stem: str) -> str:
    """Return a file name that every platform can write and read."""
    stem = unicodedata.normalize("NFC", stem)
    kept = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in stem)
    short = kept[:LONGEST_NAME].encode()[:LONGEST_NAME_BYTES].decode(errors="ignore")
    return short.strip(" .") or "song"
