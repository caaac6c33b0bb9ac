"""`woodshed dataset` as it is typed: the table, one song's exact texts, and the dataset doctor."""

import json
import re
import wave

import numpy as np
import pytest

from woodshed import cli

LYRICS = "[Verse]\nla la\n"


@pytest.fixture
def sing(tmp_path):
    """Write a song of white noise or of whatever is given, by its name in `tmp_path/music`."""

    def write(name, *, seconds=6.0, rate=48_000, channels=2, level=0.2, seed=1, sound=None):
        path = tmp_path / "music" / name
        path.parent.mkdir(exist_ok=True)
        draw = np.random.default_rng(seed)
        sound = draw.normal(size=(round(seconds * rate), channels)) * level if sound is None else sound
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((sound.clip(-1, 1) * 32_767).astype("<i2").tobytes())
        return path

    return write


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, checkpoint_root):
    """Run the command on the music; return exit code, standard output and standard error."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(*words, path="music", root=checkpoint_root):
        code = cli.main(["dataset", str(path), "--checkpoint-dir", str(root), "--plain", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_table_says_what_is_known_and_where_from(run, sing):
    sing("a.wav").with_suffix(".txt").write_text(f"caption: {'x' * 50}\nbpm: 90\nlyrics:\n{LYRICS}")
    sing("b c.wav", seconds=1)
    code, out, _ = run("--custom-tag", "zx", "--language", "ja")
    assert code == 0
    table = [line.split() for line in out.splitlines() if "wav" in line and "seconds" not in line][:2]
    assert table[0] == ["a.wav", "6", "x" * 37 + "...", "a.txt", "2", "lines", "a.txt", "90", "ja"]
    assert table[1] == ["b", "c.wav", "1", "b", "c", "file", "name", "instrumental", "ja"]
    assert "  trigger tag       zx" in out
    rows = json.loads(run("--json")[1])["tables"]["songs"]
    assert rows[0]["caption"] == "x" * 37 + "..."
    assert rows[0]["from"] == "a.txt"


def test_one_song_is_shown_exactly_as_the_model_reads_it(run, sing):
    path = sing("a.wav")
    path.with_name("a.caption.txt").write_text("a waltz")
    path.with_name("a.lyrics.txt").write_text(LYRICS)
    code, out, _ = run("--show", "a", "--custom-tag", "zx", "--language", "en", "--max-duration", "4")
    assert code == 0
    assert "\n# Caption\nzx, a waltz\n\n# Metas\n" in out
    assert "- duration: 4 seconds\n<|endoftext|>\n" in out
    assert "# Languages\nen\n\n# Lyric\n[Verse]\nla la<|endoftext|>\n" in out
    assert "of at most 256 tokens" in out
    assert "lyrics comes from a.lyrics.txt" in out


def test_what_would_be_cut_is_shown(run, sing):
    lyrics = " ".join(f"w{number}" for number in range(3_000))
    sing("a.wav").with_name("a.lyrics.txt").write_text(lyrics)
    found = json.loads(run("--show", "a.wav", "--json")[1])
    prompt, words = found["lengths"]
    assert (prompt["limit"], prompt["lost"], words["limit"]) == (256, "", 2048)
    assert words["tokens"] > 2048
    assert lyrics.endswith(words["lost"])
    assert 0 < len(words["lost"]) < len(lyrics)


def test_without_a_text_encoder_the_texts_are_shown_without_counts(run, sing, tmp_path):
    sing("a.wav")
    (tmp_path / "empty").mkdir()
    code, out, _ = run("--show", "a", root=tmp_path / "empty")
    assert code == 0
    assert "Tokens are not counted" in out
    assert "# Lyric\n[Instrumental]" in out


def test_a_song_that_is_not_there_or_there_twice_is_said(run, sing):
    sing("first.wav").rename(sing("other.wav").with_name("moved"))
    folder = sing("first.wav").parent / "x"
    folder.mkdir()
    sing("other.wav").rename(folder / "first.wav")
    assert "There is no song frist.wav. Did you mean first.wav?" in run("--show", "frist.wav")[2]
    assert "2 songs are called first" in run("--show", "first")[2]
    assert run("--show", "x/first.wav")[0] == 0


def test_the_doctor_finds_what_is_wrong_and_what_is_doubtful(run, sing):
    draw = np.random.default_rng(3)
    good = sing("good.wav", seed=2)
    good.with_suffix(".txt").write_text(f"caption: fine\nbpm: 90\nlyrics: {LYRICS}")
    copy = sing("copy.wav", seed=2)
    copy.with_suffix(".txt").write_text(f"caption: fine\nbpm: 900\ninstrumental: yes\nlyrics: {LYRICS}")
    sing("clipped.wav", sound=draw.normal(size=(288_000, 2))).with_suffix(".txt").write_text("caption: loud")
    sing("short.wav", seconds=1, rate=22_050, channels=1).with_suffix(".txt").write_text("genre: polka")
    sing("silent.wav", level=0).with_suffix(".txt").write_text(f"caption: {'word ' * 400}")
    good.with_name("broken.mp3").write_bytes(b"no sound")
    code, out, err = run("--check", "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert found["counts"]["error"] == 2
    said = {(item["song"].split("/")[-1], item["level"], item["text"][:28]) for item in found["findings"]}
    said = {(song, level, re.split(" of | [0-9]+ tokens", text)[0]) for song, level, text in said}
    assert said == {
        ("broken.mp3", "error", "music/broken.mp3 is no audio"),
        ("broken.mp3", "warning", 'It has no caption, so "broke'),
        ("silent.wav", "error", "It is silent: nothing in it "),
        ("silent.wav", "warning", "Its prompt has"),
        ("good.wav", "warning", "It is the same file as music"),
        ("copy.wav", "warning", "900 bpm is no likely tempo; "),
        ("copy.wav", "warning", "It is marked instrumental an"),
        ("clipped.wav", "warning", "31.9 %"),
        ("short.wav", "warning", "It lasts 1.0 seconds only, t"),
        ("short.wav", "warning", "It has no caption, so its ge"),
        ("short.wav", "note", "It is mono: the same sound i"),
        ("short.wav", "note", "Its sample rate is 22050 Hz,"),
    }
    people = run("--check")
    assert people[0] == 1
    assert "error: music/silent.wav: It is silent" in people[2]
    assert people[1].rstrip().splitlines()[-1] == "6 songs: 2 errors, 8 warnings, 2 notes."


def test_a_good_folder_passes_the_doctor(run, sing):
    for seed, name in enumerate(("a", "b")):
        sing(f"{name}.wav", seed=seed, seconds=6 + seed).with_suffix(".txt").write_text("caption: fine")
    assert run("--check") == (0, "2 songs: 0 errors, 0 warnings, 0 notes.\n", "")


def test_names_cannot_command_the_terminal(run, sing):
    sing("\x1b[2J 🎵 \u202egnp\n.wav")
    for words in ((), ("--check",), ("--show", "\x1b[2J 🎵 \u202egnp\n")):
        code, out, err = run(*words)
        assert code == 0
        assert "🎵" in out
        assert not {"\x1b", "\u202e"} & set(out + err)


def test_a_folder_of_tensors_is_inspected_and_not_listened_to(run, tmp_path):
    import torch

    sample = {
        "target_latents": torch.zeros(25, 16),
        "encoder_hidden_states": torch.zeros(4, 32),
        "encoder_attention_mask": torch.ones(4, dtype=torch.bool),
    }
    (tmp_path / "tensors").mkdir()
    torch.save(sample, tmp_path / "tensors" / "a.pt")
    code, out, _ = run(path="tensors")
    assert (code, out.splitlines()[0]) == (0, "tensors: dataset")
    code, _, err = run("--check", path="tensors")
    assert code == 1
    assert "--show and --check want the folder of audio" in err


def test_broken_metadata_are_one_message(run, sing):
    sing("a.wav").with_suffix(".txt").write_text("bpm: x\n")
    code, _, err = run("--check")
    assert code == 1
    assert "a.txt, bpm must be a number; got x." in err
