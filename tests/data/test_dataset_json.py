"""The three shapes of a dataset JSON, files that moved, and every wrong value named with its sample and field."""

import json
import unicodedata
from pathlib import Path

import pytest

from woodshed.data.dataset_json import read_dataset_json
from woodshed.data.songs import Song, SongList, Unusable, list_audio
from woodshed.errors import DataError

FULL = {
    "id": "1a2b",
    "audio_path": "song.wav",
    "filename": "song.wav",
    "caption": "a slow waltz",
    "genre": "folk",
    "lyrics": "[Verse 1]\nla\n\nlo",
    "raw_lyrics": "raw",
    "formatted_lyrics": "formatted",
    "bpm": 120,
    "keyscale": "C major",
    "timesignature": "3",
    "duration": 12,
    "language": "en",
    "is_instrumental": False,
    "custom_tag": "zx",
    "labeled": True,
    "prompt_override": "genre",
}


@pytest.fixture
def read(tmp_path):
    """Read a JSON that lies beside an empty song.wav."""
    (tmp_path / "song.wav").touch()

    def read_content(content: object) -> SongList:
        path = tmp_path / "dataset.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_dataset_json(path, None, ())

    return read_content


@pytest.fixture
def read_song(read):
    """Read one sample with the given fields."""
    return lambda **fields: read([{"audio_path": "song.wav"} | fields]).songs[0]


@pytest.fixture
def problems(read):
    """Read something wrong; return what is said about it."""

    def collect(content: object) -> tuple[str, ...]:
        with pytest.raises(DataError) as refusal:
            read(content)
        return refusal.value.problems

    return collect


def test_every_field_arrives(read, tmp_path):
    assert read([FULL]).songs == (
        Song(
            tmp_path / "song.wav",
            caption="a slow waltz",
            genre="folk",
            lyrics="[Verse 1]\nla\n\nlo",
            language="en",
            bpm="120",
            keyscale="C major",
            timesignature="3",
            custom_tag="zx",
            prompt_override="genre",
        ),
    )


def test_the_three_shapes_hold_the_same_songs(read):
    listed = read([FULL])
    assert read({"samples": [FULL]}) == listed
    assert read({"metadata": {}, "samples": [FULL]}) == listed
    assert read({"metadata": None, "samples": [FULL]}) == listed


def test_the_metadata_hold_for_all_songs(read):
    metadata = {"name": "waltzes", "custom_tag": "zx", "tag_position": "Append", "genre_ratio": 30, "num_samples": 1}
    found = read({"metadata": metadata, "samples": [FULL]})
    assert (found.name, found.custom_tag, found.tag_position, found.genre_ratio) == ("waltzes", "zx", "append", 30)


def test_a_byte_order_mark_does_no_harm(read):
    assert read("\ufeff" + json.dumps([FULL])) == read([FULL])


@pytest.mark.parametrize("nothing", ["N/A", "n/a", "", "  ", None, "None", "unknown", ...])
def test_what_says_nothing_is_missing(read_song, tmp_path, nothing):
    names = ("caption", "genre", "lyrics", "language", "bpm", "keyscale", "timesignature", "prompt_override")
    assert read_song(**({} if nothing is ... else dict.fromkeys(names, nothing))) == Song(tmp_path / "song.wav")


@pytest.mark.parametrize(
    ("written", "read_as"), [(120, "120"), (120.0, "120"), ("120", "120"), (" 120.0 ", "120"), (92.5, "92.5"), (0, "0")]
)
def test_a_tempo_is_a_number_however_it_is_written(read_song, written, read_as):
    assert read_song(bpm=written).bpm == read_as


def test_a_time_signature_may_be_a_number(read_song):
    assert read_song(timesignature=4).timesignature == "4"
    assert read_song(timesignature="6/8").timesignature == "6/8"


def test_lyrics_fall_back_to_formatted_and_raw_ones(read_song):
    assert read_song(formatted_lyrics="tidy", raw_lyrics="raw").lyrics == "tidy"
    assert read_song(lyrics="N/A", raw_lyrics="raw").lyrics == "raw"


def test_line_breaks_of_every_system_are_one(read_song):
    assert read_song(lyrics="one\r\ntwo\rthree\n").lyrics == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"caption": ["a", "b"]}, 'caption must be text or a number; got ["a", "b"].'),
        ({"caption": True}, "caption must be text or a number; got true."),
        ({"lyrics": {"verse": "x"}}, 'lyrics must be text or a number; got {"verse": "x"}.'),
        ({"bpm": "fast"}, "bpm must be a number; got fast."),
        ({"bpm": float("nan")}, "bpm must be a number; got nan."),
        ({"bpm": [120]}, "bpm must be text or a number; got [120]."),
        ({"is_instrumental": "yes"}, 'is_instrumental must be true or false; got "yes".'),
        ({"prompt_override": "lyrics"}, "prompt_override must be one of caption, genre; got lyrics."),
        ({"genre": "half an emoji \ud83c"}, "genre holds half a character (a lone surrogate). Write it again."),
        ({"audio_path": None}, "audio_path is missing: it must name the audio file."),
        ({"audio_path": 7.5}, "7.5 does not exist. Give the folder that holds it with --audio-dir."),
        ({"audio_path": "/"}, "/ does not exist. Give the folder that holds it with --audio-dir."),
        ({"audio_path": "."}, ". does not exist. Give the folder that holds it with --audio-dir."),
        ({"audio_path": "\0.wav"}, "\0.wav does not exist. Give the folder that holds it with --audio-dir."),
    ],
)
def test_a_wrong_value_is_named_with_its_sample_and_field_and_the_other_songs_stay(
    problems, read, tmp_path, fields, said
):
    good = {"audio_path": "song.wav"}
    found = read([good, good | fields])
    assert len(found.songs) == 1
    assert found.unusable == (Unusable(tmp_path / "dataset.json", (f"{tmp_path / 'dataset.json'}, sample 2: {said}",)),)
    assert problems([good | fields]) == (f"{tmp_path / 'dataset.json'}, sample 1: {said}",), "nothing is left"


def test_a_path_longer_than_any_file_name_is_no_crash(problems):
    assert "does not exist" in problems([{"audio_path": "x" * 50_000}])[0]


def test_all_problems_are_said_at_once(problems, tmp_path):
    said = problems(
        {
            "metadata": {"tag_position": "middle", "genre_ratio": 120},
            "samples": [{"audio_path": "gone.wav", "bpm": "x"}, "song.wav", {"audio_path": "song.wav", "caption": []}],
        }
    )
    assert [problem.removeprefix(f"{tmp_path / 'dataset.json'}, ") for problem in said] == [
        "sample 1: gone.wav does not exist. Give the folder that holds it with --audio-dir.",
        "sample 1: bpm must be a number; got x.",
        "sample 2: expected an object, got str.",
        "sample 3: caption must be text or a number; got [].",
        "metadata: tag_position must be one of prepend, append, replace; got middle.",
        "metadata: genre_ratio must be a whole number from 0 to 100; got 120.",
    ]


@pytest.mark.parametrize("ratio", [-1, 101, 33.3, "some"])
def test_a_genre_ratio_is_a_percentage(problems, ratio):
    assert "genre_ratio must be" in problems({"metadata": {"genre_ratio": ratio}, "samples": [FULL]})[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "names no songs"),
        ('{"samples": []}', "names no songs"),
        ("[{]", "is not valid JSON: line 1, column 3"),
        ("", "is not valid JSON: line 1, column 1"),
        ('"songs"', "is no dataset"),
        ('{"songs": []}', "is no dataset"),
        ('{"samples": {}}', "is no dataset"),
        ('{"samples": [], "metadata": []}', "names no songs"),
        ('{"samples": [], "metadata": "x"}', "is no dataset"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_dataset_is_refused(problems, content, said):
    assert said in problems(content)[0]


def test_a_missing_json_and_broken_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"There is no dataset JSON .*gone\.json"):
        read_dataset_json(tmp_path / "gone.json", None, ())
    (tmp_path / "latin.json").write_bytes(b'[{"caption": "caf\xe9"}]')
    with pytest.raises(DataError, match="cannot be read as text"):
        read_dataset_json(tmp_path / "latin.json", None, ())


@pytest.fixture
def locate(tmp_path):
    """Look for a path, written in a JSON in one folder, with the given files in another."""

    def find(written: str, *files: str, beside: tuple[str, ...] = ()) -> Path:
        for folder, names in (("audio", files), ("json", beside)):
            for name in names:
                (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / folder / name).touch()
        (tmp_path / "json").mkdir(exist_ok=True)
        path = tmp_path / "json" / "dataset.json"
        path.write_text(json.dumps([{"audio_path": written}]))
        audio = tmp_path / "audio" if files else None
        found = read_dataset_json(path, audio, list_audio(audio) if audio else ()).songs[0].path
        return found.relative_to(tmp_path)

    return find


def test_an_absolute_path_is_taken_as_it_is(locate, tmp_path):
    (tmp_path / "elsewhere.wav").touch()
    assert locate(str(tmp_path / "elsewhere.wav"), "elsewhere.wav") == Path("elsewhere.wav")


def test_a_relative_path_means_beside_the_json_not_the_working_folder(locate, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.wav").touch()
    monkeypatch.chdir(tmp_path)
    assert locate("sub/a.wav", beside=("sub/a.wav",)) == Path("json/sub/a.wav")


def test_a_relative_path_may_mean_inside_the_audio_folder(locate):
    assert locate("disc 2/a.wav", "disc 1/a.wav", "disc 2/a.wav") == Path("audio/disc 2/a.wav")


@pytest.mark.parametrize("written", ["/mnt/old/a.wav", "C:\\Users\\me\\Music\\a.wav", "..\\a.wav", "gone/a.wav"])
def test_a_stale_path_is_found_by_its_name(locate, written):
    assert locate(written, "deep/a.wav") == Path("audio/deep/a.wav")
    assert locate(written, beside=("a.wav",)) == Path("json/a.wav")


def test_of_several_files_with_one_name_the_one_in_the_same_folder_is_meant(locate):
    assert locate("D:\\music\\disc 2\\a.wav", "disc 1/a.wav", "disc 2/a.wav") == Path("audio/disc 2/a.wav")


def test_a_name_that_could_be_several_files_is_refused(locate):
    with pytest.raises(DataError, match=r"2 files below --audio-dir have its name"):
        locate("/old/a.wav", "disc 1/a.wav", "disc 2/a.wav")


def test_accents_are_found_however_they_are_spelled(locate):
    apart, together = unicodedata.normalize("NFD", "café.wav"), unicodedata.normalize("NFC", "café.wav")
    assert locate(f"/old/{together}", apart) == Path("audio") / apart
