"""Files beside a song: what they say, in which order, and every mistake with file and line."""

import json

import pytest

from woodshed.data.sidecars import read_sidecars
from woodshed.errors import DataError


@pytest.fixture
def read(tmp_path):
    """Write files beside `song.wav` by the endings of their names, and read them."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / f"song.{name.replace('_', '.')}"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_sidecars(tmp_path / "song.wav")

    return write


@pytest.fixture
def problems(read, tmp_path):
    def collect(**files):
        with pytest.raises(DataError) as refusal:
            read(**files)
        return [problem.replace(f"{tmp_path}/", "") for problem in refusal.value.problems]

    return collect


def test_a_song_alone_has_nothing(read):
    assert read() == []


def test_fields_are_read_line_by_line_and_lyrics_run_on(read):
    text = (
        "\ufeffCaption: a waltz: slow\r\nBPM: 92.0\r\nKey: F# minor\r\nLyrics:\r\n[Verse]\r\n"
        "Oh: la la\r\n\r\n key: lost\r\nInstrumental: no\r\n"
    )
    assert read(txt=text) == [
        (
            "song.txt",
            {
                "caption": "a waltz: slow",
                "keyscale": "F# minor",
                "bpm": "92",
                "lyrics": "[Verse]\nOh: la la\n\n key: lost",
                "is_instrumental": False,
            },
        )
    ]


def test_an_object_holds_the_fields_of_a_sample(read):
    content = json.dumps(
        {"caption": "x", "bpm": 90, "raw_lyrics": "la", "is_instrumental": True, "id": 7, "language": None}
    )
    assert read(json=content) == [("song.json", {"caption": "x", "bpm": "90", "lyrics": "la", "is_instrumental": True})]


def test_caption_and_lyrics_may_have_files_of_their_own(read):
    assert read(caption_txt="a waltz,\nslow\n", lyrics_txt="[Verse]\r\nla\r\n") == [
        ("song.caption.txt", {"caption": "a waltz, slow"}),
        ("song.lyrics.txt", {"lyrics": "[Verse]\nla"}),
    ]


def test_the_strongest_file_comes_first(read):
    found = read(lyrics_txt="a", caption_txt="b", txt="caption: c", json="{}")
    assert [name for name, _ in found] == ["song.json", "song.txt", "song.caption.txt", "song.lyrics.txt"]


def test_every_mistake_of_every_file_is_said_with_its_line(problems):
    said = problems(
        txt="a lonely line\ncaptoin: x\nbpm: fast\nbpm: 90\ninstrumental: maybe\n",
        json='{"caption": [1],\n "bpm": }',
        lyrics_txt=b"one\ntwo \xff\n",
    )
    assert said[0].startswith("song.json is not valid JSON: line 2, column 9")
    assert said[1].startswith("song.txt, line 1: expected `field: value`. Fields are caption, genre,")
    assert said[2].startswith("song.txt, line 2: there is no field captoin. Did you mean caption? Fields are ")
    assert said[3:] == [
        "song.txt, line 4: bpm is said a second time.",
        "song.txt, is_instrumental must be yes or no; got maybe.",
        "song.txt, bpm must be a number; got fast.",
        "song.lyrics.txt, line 2: this is no UTF-8 text but another encoding. Save the file as UTF-8.",
    ]


def test_wrong_types_whole_datasets_and_other_encodings_are_refused(problems):
    assert problems(json='{"caption": ["a"], "is_instrumental": "yes"}') == [
        'song.json, caption must be text or a number; got ["a"].',
        'song.json, is_instrumental must be true or false; got "yes".',
    ]
    assert "it holds a whole dataset" in problems(json='{"samples": []}')[0]
    assert "it holds a list" in problems(json="[]")[0]
    assert "nested too deeply" in problems(json="[" * 100_000)[0]
    assert "line 1: this is no UTF-8 text but UTF-16" in problems(json="{}", txt="caption: x".encode("utf-16"))[0]


def test_fifty_thousand_characters_of_lyrics_in_any_script_arrive(read):
    lyrics = '\u202e夜の歌 \u05e9\u05d9 🎵 "quoted", it\'s; x\n' * 2_000
    assert read(lyrics_txt=lyrics) == [("song.lyrics.txt", {"lyrics": lyrics.strip()})]
    assert read(txt=f"lyrics: {lyrics}")[0][1]["lyrics"] == lyrics.strip()
