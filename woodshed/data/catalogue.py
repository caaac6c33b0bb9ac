"""Which songs there are: from a folder, from an ACE-Step dataset JSON, or from a folder that a JSON describes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from woodshed.data.dataset_json import read_dataset_json
from woodshed.data.songs import Song, SongList, list_audio, listed
from woodshed.errors import DataError, collecting


def find_songs(audio_dir: Path | None, dataset_json: Path | None) -> SongList:
    """Collect the songs of a folder, of a dataset JSON, or of a folder described by a JSON.

    With both, the JSON says which songs are used, and the folder is where files are looked for whose path in the JSON
    does not exist any more.

    Raises:
        DataError: with every problem: missing folders and files, wrong types, no songs.
    """
    if audio_dir is None and dataset_json is None:
        raise DataError("Say which songs to preprocess: --audio-dir FOLDER, --dataset-json FILE, or both.")
    problems: list[str] = []
    in_folder: tuple[Path, ...] = ()
    found = SongList()
    if audio_dir is not None:
        with collecting(problems):
            in_folder = list_audio(audio_dir)
            found = SongList(tuple(map(Song, in_folder)))
    if dataset_json is not None and not problems:  # without its folder a JSON would miss every song once more
        with collecting(problems):
            found = read_dataset_json(dataset_json, audio_dir, in_folder)
    if problems:
        raise DataError(*problems)
    songs = tuple(song if _has_words(song) else replace(song, caption=_words_of(song.path)) for song in found.songs)
    notices = _notices(found, audio_dir, in_folder)
    return replace(found, songs=songs, notices=tuple(notices))


def _has_words(song: Song) -> bool:
    return bool(song.caption or song.genre)


def _words_of(path: Path) -> str:
    """Return a file name as words: 'my_song-01' becomes 'my song 01'."""
    readable = path.stem.encode("utf-8", errors="ignore").decode()  # names may hold bytes that are no text
    return " ".join(readable.replace("_", " ").replace("-", " ").split())


def _notices(found: SongList, audio_dir: Path | None, in_folder: tuple[Path, ...]) -> Iterator[str]:
    """Say what is left out and what is made up."""
    used = {song.path.resolve() for song in found.songs}
    unused = [str(file.relative_to(audio_dir)) for file in in_folder if audio_dir and file.resolve() not in used]
    if unused:
        yield f"{len(unused)} files in {audio_dir} are not in the dataset JSON and are left out: {listed(unused)}."
    silenced = [song.path.name for song in found.songs if song.is_instrumental and song.lyrics]
    if silenced:
        yield f"{len(silenced)} songs are marked instrumental, so their lyrics are left out: {listed(silenced)}."
    wordless = [song.path.name for song in found.songs if not _has_words(song)]
    if wordless:
        yield (
            f"{len(wordless)} of {len(found.songs)} songs have no caption, so the words of their file names stand in: "
            f"{listed(wordless)}. A dataset JSON with captions teaches more."
        )
