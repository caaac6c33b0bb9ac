"""Which songs there are, and what is known about each, from every source in a stated order.

A dataset.json and a metadata.csv in the audio folder are found by themselves.

The strongest source of a field wins: dataset JSON, song.json, song.txt, song.caption.txt and song.lyrics.txt, the CSV,
the audio file's own tags, and the file name.
"""

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from woodshed.data.ahead import ahead
from woodshed.data.audio_tags import read_tags
from woodshed.data.dataset_json import read_dataset_json
from woodshed.data.metadata_csv import METADATA_CSV, read_metadata_csv
from woodshed.data.sidecars import read_sidecars
from woodshed.data.songs import Song, SongList, Unusable, list_audio, listed, real_path
from woodshed.errors import DataError, collecting

DATASET_JSON = "dataset.json"  # what is read without being asked, in the audio folder
TAGS, FILE_NAME = "audio tags", "file name"
TAG_READERS = 8  # threads; they mostly wait for the disk
Table = Mapping[Path, dict[str, Any]]


def find_songs(audio_dir: Path | None, dataset_json: Path | None, metadata_csv: Path | None = None) -> SongList:
    """Collect the songs of a folder, of a dataset JSON, or of a folder described by a JSON.

    With both, the JSON says which songs are used, and the folder is where files are looked for whose path in the JSON
    does not exist any more.

    Args:
        audio_dir: a folder of songs.
        dataset_json: names songs, and describes them; without one, dataset.json in the audio folder does, if there is
            one.
        metadata_csv: describes songs; without one, metadata.csv in the audio folder does, if there is one.

    Returns:
        What can be used; a song of which something wrong is said is named as unusable.

    Raises:
        DataError: with every problem, when something is wrong with the whole or with every song.
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
    dataset_json = dataset_json or _own_json(audio_dir, in_folder)
    if dataset_json is not None and not problems:  # without its folder a JSON would miss every song once more
        with collecting(problems):
            found = read_dataset_json(dataset_json, audio_dir, in_folder)
    table: Table = {}
    if audio_dir is not None and metadata_csv is None and (audio_dir / METADATA_CSV).is_file():
        metadata_csv = audio_dir / METADATA_CSV
    if metadata_csv is not None:
        with collecting(problems):
            table = read_metadata_csv(metadata_csv, audio_dir, in_folder)
    songs, unusable = [], list(found.unusable)
    with closing(_tagged(found.songs)) as tagged:
        for song, tags in tagged:
            try:
                songs.append(_complete(song, table, tags.result()))
            except DataError as error:
                unusable.append(Unusable(song.path, error.problems))
    if problems or not songs:
        problems += [problem for item in unusable for problem in item.problems]
        raise DataError(*dict.fromkeys(problems))  # songs of one name share their sidecars
    notices = _notices(found.songs, songs, audio_dir, in_folder)
    return replace(found, songs=tuple(songs), unusable=tuple(unusable), notices=tuple(notices))


def _own_json(audio_dir: Path | None, in_folder: tuple[Path, ...]) -> Path | None:
    """Return the dataset JSON that lies in the audio folder; beside a song called dataset it is that song's own."""
    if audio_dir is None or not (audio_dir / DATASET_JSON).is_file():
        return None
    path = audio_dir / DATASET_JSON
    return None if any(song.parent == audio_dir and song.stem == path.stem for song in in_folder) else path


def _tagged(songs: tuple[Song, ...]) -> Generator[tuple[Song, Future[dict[str, Any]]], None, None]:
    """Yield every song with its tags, which threads read ahead."""
    return ahead(lambda song, _: read_tags(song.path), songs, threads=TAG_READERS, room=64, weigh=lambda _: 1)


def _complete(song: Song, table: Table, tags: dict[str, Any]) -> Song:
    """Fill in what the dataset JSON does not say.

    Raises:
        DataError: when a file beside the song is wrong.
    """
    title = tags.pop("title", "")
    sources = [*read_sidecars(song.path), ("CSV", table.get(real_path(song.path), {})), (TAGS, tags)]
    for origin, facts in sources:
        new = {name: value for name, value in facts.items() if name not in song.origins}
        song = replace(song, **new, origins={**song.origins, **dict.fromkeys(new, origin)})
    if song.caption or song.genre:
        return song
    origin = TAGS if title else FILE_NAME
    return replace(song, caption=title or _words_of(song.path), origins={**song.origins, "caption": origin})


def _words_of(path: Path) -> str:
    """Return a file name as words: 'my_song-01' becomes 'my song 01'."""
    readable = path.stem.encode("utf-8", errors="ignore").decode()  # names may hold bytes that are no text
    return " ".join(readable.replace("_", " ").replace("-", " ").split())


def _notices(
    named: tuple[Song, ...], songs: list[Song], audio_dir: Path | None, in_folder: tuple[Path, ...]
) -> Iterator[str]:
    """Say what is left out and what is made up.

    Args:
        named: the songs as the dataset JSON or the folder gives them.
        songs: the same with everything that is known.
        audio_dir, in_folder: the audio folder and its files.
    """
    used = {real_path(song.path) for song in named}
    unused = [str(file.relative_to(audio_dir)) for file in in_folder if audio_dir and real_path(file) not in used]
    if unused:
        yield f"{len(unused)} files in {audio_dir} are not in the dataset JSON and are left out: {listed(unused)}."
    silenced = [song.path.name for song in songs if song.is_instrumental and song.lyrics]
    if silenced:
        yield f"{len(silenced)} songs are marked instrumental, so their lyrics are left out: {listed(silenced)}."
    for origin, stand_in in ((TAGS, "titles"), (FILE_NAME, "words of their file names")):
        wordless = [song.path.name for song in songs if song.origins.get("caption") == origin]
        if wordless:
            yield (
                f"{len(wordless)} of {len(songs)} songs have no caption, so the {stand_in} stand in: "
                f"{listed(wordless)}. Captions in files beside the songs, a CSV or a dataset JSON teach more."
            )
