"""The text the model reads, to the last character."""

import json

import pytest
import torch

from woodshed.data.conditioning import lyric_text, prompt_sources, prompt_text, song_texts, tagged
from woodshed.data.songs import Song
from woodshed.models.encoders import END_OF_TEXT
from woodshed.models.load import load_text_encoder

NOTHING_KNOWN = {"bpm": "", "timesignature": "", "keyscale": ""}


def texts_of(
    song: Song,
    source="caption",
    *,
    tag="",
    position="prepend",
    language="unknown",
    seconds=30.0,
    conditioning="inference",
):
    where = {"tag": tag, "position": position, "language": language}
    return song_texts(song, source, **where, seconds=seconds, conditioning=conditioning)


@pytest.fixture
def songs(tmp_path):
    return [Song(tmp_path / f"{number}.wav", caption="caption", genre="genre") for number in range(40)]


def test_the_prompt_is_the_one_of_inference_to_the_last_character():
    assert prompt_text("a song", bpm="120", timesignature="4", keyscale="C major", seconds=30) == (
        "# Instruction\n"
        "Fill the audio semantic mask based on the given conditions:\n"
        "\n"
        "# Caption\n"
        "a song\n"
        "\n"
        "# Metas\n"
        "- bpm: 120\n"
        "- timesignature: 4\n"
        "- keyscale: C major\n"
        "- duration: 30 seconds\n"
        "<|endoftext|>\n"
    )


def test_the_lyrics_carry_their_language_in_a_header():
    assert lyric_text("[Verse]\nla la", "ja") == "# Languages\nja\n\n# Lyric\n[Verse]\nla la<|endoftext|>"


def test_texts_are_those_of_the_original(golden, tmp_path):
    expected = json.loads((golden / "text_encoder.json").read_text())
    lyrics = expected["lyric_cases"]["raw_song"]
    known = Song(
        tmp_path / "a.wav",
        caption="an upbeat synthwave song with warm analog pads",
        lyrics=lyrics,
        language="en",
        bpm="120",
        timesignature="4",
        keyscale="C major",
    )
    assert texts_of(known) == (expected["text_cases"]["a"], expected["lyric_cases"]["infer_song"])
    unknown = Song(tmp_path / "b.wav", caption="ünïcode 音楽 caption")
    assert texts_of(unknown, tag="mytag")[0] == expected["text_cases"]["b"]


def test_the_tokens_are_those_of_the_original(checkpoint_root, golden, read_golden, tmp_path):
    texts = load_text_encoder(checkpoint_root / "Qwen3-Embedding-0.6B", dtype=torch.float32, device="cpu")
    lyrics = json.loads((golden / "text_encoder.json").read_text())["lyric_cases"]["raw_song"]
    prompt, header = texts_of(
        Song(tmp_path / "b.wav", caption="ünïcode 音楽 caption", lyrics=lyrics), tag="mytag", language="en"
    )
    expected = read_golden("text_encoder")
    assert texts.tokenizer.encode(prompt).ids == expected["text_b_longest_ids"][0].tolist()
    assert texts.tokenizer.encode(header).ids == expected["lyric_infer_song_ids"][0].tolist()


@pytest.mark.parametrize("name", ["bpm", "timesignature", "keyscale"])
def test_what_is_not_known_is_written_so(name):
    known = {"bpm": "90", "timesignature": "3", "keyscale": "D minor"} | {name: ""}
    lines = prompt_text("c", **known, seconds=1).splitlines()
    assert [line for line in lines if "N/A" in line] == [f"- {name}: N/A"]


@pytest.mark.parametrize(("seconds", "written"), [(0.4, 0), (1, 1), (29.99, 29), (30.0, 30), (239.5, 239), (240, 240)])
def test_the_duration_is_the_true_one_in_whole_seconds(seconds, written):
    assert f"- duration: {written} seconds\n" in prompt_text("c", **NOTHING_KNOWN, seconds=seconds)


@pytest.mark.parametrize(
    ("position", "expected"), [("prepend", "tag, a song"), ("append", "a song, tag"), ("replace", "tag")]
)
def test_the_tag_goes_where_it_is_told(tmp_path, position, expected):
    assert tagged("a song", "tag", position) == expected
    assert tagged("a song", "", position) == "a song"
    assert tagged("", "tag", position) == "tag"
    prompt, _ = texts_of(Song(tmp_path / "a.wav", caption="a song"), tag="tag", position=position)
    assert f"# Caption\n{expected}\n\n" in prompt


def test_a_songs_own_tag_wins_over_the_datasets(tmp_path):
    prompt, _ = texts_of(Song(tmp_path / "a.wav", caption="a song", custom_tag="mine"), tag="all")
    assert "# Caption\nmine, a song\n" in prompt


def test_genre_prompts_are_tagged_too(tmp_path):
    prompt, _ = texts_of(Song(tmp_path / "a.wav", caption="a song", genre="polka"), "genre", tag="tag")
    assert "# Caption\ntag, polka\n" in prompt


def test_a_songs_own_language_wins_over_the_settings(tmp_path):
    assert texts_of(Song(tmp_path / "a.wav", lyrics="la", language="ja"), language="en")[1].startswith(
        "# Languages\nja\n"
    )
    assert texts_of(Song(tmp_path / "a.wav", lyrics="la"), language="en")[1].startswith("# Languages\nen\n")
    assert texts_of(Song(tmp_path / "a.wav", lyrics="la"))[1].startswith("# Languages\nunknown\n")


@pytest.mark.parametrize("fields", [{}, {"lyrics": "left over", "is_instrumental": True}, {"is_instrumental": True}])
def test_without_words_to_sing_a_song_is_instrumental(tmp_path, fields):
    _, lyrics = texts_of(Song(tmp_path / "a.wav", **fields))
    assert lyrics == f"# Languages\nunknown\n\n# Lyric\n[Instrumental]{END_OF_TEXT}"


@pytest.mark.parametrize("ratio", [0, 25, 50, 100])
def test_the_genre_ratio_is_met_exactly(songs, ratio):
    assert prompt_sources(songs, ratio, 42).count("genre") == 40 * ratio / 100


def test_the_seed_chooses_who_uses_the_genre_and_nothing_else_does(songs):
    chosen = prompt_sources(songs, 50, 42)
    assert prompt_sources(songs, 50, 42) == chosen
    assert prompt_sources(songs, 50, 43) != chosen
    assert prompt_sources(songs[::-1], 50, 42) == chosen[::-1]
    moved = [Song(song.path.parent / "elsewhere" / song.path.name, song.caption, song.genre) for song in songs]
    assert prompt_sources(moved, 50, 42) == chosen


def test_one_more_song_changes_the_choice_of_one_other_at_most(songs, tmp_path):
    before = prompt_sources(songs, 50, 42)
    after = prompt_sources([*songs, Song(tmp_path / "new.wav", "caption", "genre")], 50, 42)[:-1]
    assert sum(one != other for one, other in zip(before, after, strict=True)) <= 1


def test_a_higher_ratio_keeps_those_that_already_used_their_genre(songs):
    few, more = prompt_sources(songs, 25, 42), prompt_sources(songs, 75, 42)
    assert all(later == "genre" for earlier, later in zip(few, more, strict=True) if earlier == "genre")


def test_an_override_wins_over_the_ratio(tmp_path):
    songs = [Song(tmp_path / "a.wav", "c", "g", prompt_override=override) for override in ("caption", "genre", None)]
    assert prompt_sources(songs, 100, 42) == ["caption", "genre", "genre"]
    assert prompt_sources(songs, 0, 42) == ["caption", "genre", "caption"]


def test_what_is_not_known_is_never_the_prompt(tmp_path):
    songs = [
        Song(tmp_path / "a.wav", caption="c", prompt_override="genre"),
        Song(tmp_path / "b.wav", genre="g", prompt_override="caption"),
        Song(tmp_path / "c.wav", genre="g"),
    ]
    for ratio in (0, 100):
        assert prompt_sources(songs, ratio, 42) == ["caption", "genre", "genre"]
