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


def test_the_strongest_source_of_each_field_wins_and_is_remembered(music, tmp_path, monkeypatch):
    tags = dict.fromkeys(("genre", "keyscale", "lyrics"), "tags") | {"bpm": "7", "title": "tags"}
    monkeypatch.setattr("woodshed.data.catalogue.read_tags", lambda path: dict(tags) if path.name == "a.mp3" else {})
    dataset = write_json(tmp_path, [{"audio_path": "music/a.mp3", "caption": "dataset", "is_instrumental": False}])
    (music / "a.json").write_text('{"caption": "json", "language": "json", "is_instrumental": true}')
    (music / "a.txt").write_text("language: txt\ntimesignature: 3\n")
    (music / "a.lyrics.txt").write_text("lyrics")
    (music / "metadata.csv").write_text("file,lyrics,custom_tag,timesignature,genre\na.mp3,csv,csv,4,csv\n")
    (song,) = find_songs(music, dataset).songs
    assert song == Song(
        music.parent / "music" / "a.mp3",
        caption="dataset",
        genre="csv",
        lyrics="lyrics",
        language="json",
        bpm="7",
        keyscale="tags",
        timesignature="3",
        custom_tag="csv",
    )
    assert song.origins == {
        "caption": "dataset JSON",
        "is_instrumental": "dataset JSON",
        "language": "a.json",
        "timesignature": "a.txt",
        "lyrics": "a.lyrics.txt",
        "custom_tag": "CSV",
        "genre": "CSV",
        "keyscale": "audio tags",
        "bpm": "audio tags",
    }


def test_a_title_stands_in_before_the_file_name_and_a_genre_before_both(music, monkeypatch):
    tags = {"a.mp3": {"title": "Blue Hour"}, "b.wav": {"title": "Red", "genre": "polka"}}
    monkeypatch.setattr("woodshed.data.catalogue.read_tags", lambda path: dict(tags[path.name]))
    found = find_songs(music, None)
    assert [song.caption for song in found.songs] == ["Blue Hour", "", ""]
    assert found.notices[0].startswith("1 of 3 songs have no caption, so the titles stand in: a.mp3.")


def test_a_named_table_replaces_the_one_in_the_folder(music, tmp_path):
    (music / "metadata.csv").write_text("file,caption\na.mp3,folder\n")
    (tmp_path / "mine.csv").write_text("file,caption\na.mp3,mine\n")
    assert find_songs(music, None).songs[0].caption == "folder"
    assert find_songs(music, None, tmp_path / "mine.csv").songs[0].caption == "mine"


def test_problems_of_all_sources_come_together_and_once(music, tmp_path):
    (music / "a.txt").write_text("bpm: x")
    (music / "b.json").write_text("[]")
    (music / "b.wav").with_suffix(".mp3").touch()  # another song that b.json describes
    with pytest.raises(DataError) as refusal:
        find_songs(music, None, tmp_path / "gone.csv")
    assert [problem.split(" ")[-1] for problem in refusal.value.problems] == [
        f"{tmp_path / 'gone.csv'}.",
        "x.",
        "list.",
    ]


def test_a_dataset_json_in_the_folder_is_found_and_one_that_is_given_wins(music, tmp_path):
    (music / "dataset.json").write_text('[{"audio_path": "b.wav", "caption": "found"}]')
    found = find_songs(music, None)
    assert [(song.path.name, song.caption) for song in found.songs] == [("b.wav", "found")]
    assert "2 files in" in found.notices[0]
    (tmp_path / "mine.json").write_text('[{"audio_path": "music/disc 2/b.wav", "caption": "mine"}]')
    assert [song.caption for song in find_songs(music, tmp_path / "mine.json").songs] == ["mine"]


def test_a_json_beside_a_song_called_dataset_is_that_songs_own(music):
    (music / "b.wav").rename(music / "dataset.wav")
    (music / "dataset.json").write_text('{"caption": "one song of three"}')
    assert [song.caption for song in find_songs(music, None).songs] == ["a", "one song of three", "b"]


def test_links_that_lead_nowhere_are_songs_that_cannot_be_read_and_folders_in_a_circle_do_no_harm(music):
    (music / "disc 2" / "circle").symlink_to(music)
    (music / "gone.wav").symlink_to(music / "nowhere.wav")
    (music / "self.wav").symlink_to(music / "self.wav")
    names = [song.path.name for song in find_songs(music, None).songs]
    assert names == ["a.mp3", "b.wav", "b.wav", "gone.wav", "self.wav"]
