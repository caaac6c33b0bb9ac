"""Songs come from a folder, a JSON or both, and everything that is left out or made up is said."""

import json
from pathlib import Path

import pytest

from woodshed.data.catalogue import find_songs
from woodshed.data.songs import Song
from woodshed.errors import DataError


@pytest.fixture
def music(tmp_path) -> Path:
    """Three songs in two folders; nobody looks inside them."""
    for name in ("b.wav", "a.mp3", "disc 2/b.wav"):
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "music"


def write_json(folder: Path, content: object) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_a_folder_is_searched_to_the_bottom_and_sorted(music):
    assert [song.path for song in find_songs(music, None).songs] == [
        music / "a.mp3",
        music / "b.wav",
        music / "disc 2" / "b.wav",
    ]


@pytest.mark.parametrize("name", ["x.WAV", "x.Mp3", "x.flac", "x.ogg", "x.opus", "x.m4a", "夜の歌 🎵.flac", "it's.wav"])
def test_every_audio_suffix_and_every_name_counts(tmp_path, name):
    (tmp_path / name).touch()
    assert [song.path.name for song in find_songs(tmp_path, None).songs] == [name]


def test_hidden_files_and_folders_and_other_files_are_left_alone(music):
    for name in ("._a.mp3", "notes.txt", "cover.jpg", ".trash/old.wav"):
        (music / name).parent.mkdir(exist_ok=True)
        (music / name).touch()
    assert len(find_songs(music, None).songs) == 3


def test_a_folder_that_links_to_itself_ends(music):
    (music / "loop").symlink_to(music, target_is_directory=True)
    assert len(find_songs(music, None).songs) == 3


def test_file_names_stand_in_for_captions_and_that_is_said(tmp_path):
    (tmp_path / "slow_blues-in  E.wav").touch()
    found = find_songs(tmp_path, None)
    assert found.songs == (Song(tmp_path / "slow_blues-in  E.wav", caption="slow blues in E"),)
    (notice,) = found.notices
    assert notice.startswith("1 of 1 songs have no caption, so the words of their file names stand in: slow_blues-in")


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(DataError, match=r"There is no audio folder .*nowhere\."):
        find_songs(tmp_path / "nowhere", None)


def test_a_folder_without_songs_says_what_it_saw(tmp_path):
    with pytest.raises(DataError, match="the folder is empty"):
        find_songs(tmp_path, None)
    for name in ("a.txt", "b.wma", "README"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"looked for \.wav .*\.m4a and saw files with \.txt, \.wma, no ending\."):
        find_songs(tmp_path, None)


def test_neither_folder_nor_json_is_said():
    with pytest.raises(DataError, match="--audio-dir FOLDER, --dataset-json FILE, or both"):
        find_songs(None, None)


def test_a_json_describes_and_the_folder_provides(music, tmp_path):
    path = write_json(
        tmp_path,
        [
            {"audio_path": "D:\\old\\a.mp3", "caption": "a waltz"},
            {"audio_path": "/gone/disc 2/b.wav", "genre": "polka"},
        ],
    )
    found = find_songs(music, path)
    assert found.songs == (Song(music / "a.mp3", caption="a waltz"), Song(music / "disc 2" / "b.wav", genre="polka"))
    assert found.notices == (f"1 files in {music} are not in the dataset JSON and are left out: b.wav.",)


@pytest.mark.usefixtures("music")
def test_songs_of_a_json_without_words_get_those_of_their_file_name(tmp_path):
    path = write_json(
        tmp_path, [{"audio_path": "music/a.mp3", "caption": "N/A"}, {"audio_path": "music/b.wav", "caption": "jig"}]
    )
    found = find_songs(None, path)
    assert [song.caption for song in found.songs] == ["a", "jig"]
    assert "1 of 2 songs have no caption" in found.notices[0]


@pytest.mark.usefixtures("music")
def test_lyrics_of_an_instrumental_are_left_out_and_that_is_said(tmp_path):
    sample = {"audio_path": "music/a.mp3", "caption": "c", "lyrics": "la la", "is_instrumental": True}
    assert find_songs(None, write_json(tmp_path, [sample])).notices == (
        "1 songs are marked instrumental, so their lyrics are left out: a.mp3.",
    )


def test_long_lists_name_a_few_and_count_the_rest(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.wav").touch()
    path = write_json(tmp_path, [{"audio_path": "00.wav", "caption": "c"}])
    assert (
        find_songs(tmp_path, path)
        .notices[0]
        .endswith("01.wav, 02.wav, 03.wav, 04.wav, 05.wav, 06.wav, 07.wav, 08.wav and 3 more.")
    )


def test_a_missing_folder_is_said_once_not_for_every_song(tmp_path):
    path = write_json(tmp_path, [{"audio_path": f"{number}.wav"} for number in range(5)])
    with pytest.raises(DataError) as refusal:
        find_songs(tmp_path / "nowhere", path)
    assert len(refusal.value.problems) == 1
