"""Everything that real folders hold: each bad song is one clear line, the rest is encoded, and the count is honest."""

import json
import os
import subprocess
import wave

import numpy as np
import pytest
import torch

from woodshed import cli
from woodshed.data.encode import preprocess
from woodshed.data.events import Finished, Found, Notice, SongFailed

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture
def music(tmp_path, write_audio, tones):
    """Replaces the usual songs: a folder with a single good one."""
    write_audio(tmp_path / "music" / "good.wav", tones(0.3))
    return tmp_path / "music"


@pytest.fixture
def encode(settings_for, music):  # noqa: ARG001 - the songs must be there
    """Preprocess; return what failed, what was noticed, and (songs, encoded, failed)."""

    def run(**changes):
        events = list(preprocess(settings_for(max_duration=0.5, **changes)))
        failed = [event.problem for event in events if isinstance(event, SongFailed)]
        noticed = [event.text for event in events if isinstance(event, Notice)]
        (found,) = (event for event in events if isinstance(event, Found))
        end = events[-1]
        assert isinstance(end, Finished)
        return failed, noticed, (found.songs, end.encoded, end.failed)

    return run


@pytest.fixture
def sample_of(tmp_path):
    def read(start):
        (path,) = (tmp_path / "tensors").glob(f"{start}*.pt")
        return torch.load(path, weights_only=True)

    return read


def test_files_that_are_no_whole_songs_are_named_each_in_a_line_and_the_rest_is_encoded(
    encode, music, write_audio, tones
):
    whole = write_audio(music / "whole.mp3", tones(20)).read_bytes()
    (music / "cut.mp3").write_bytes(whole[: len(whole) // 100])
    (music / "wrong.mp3").write_bytes(b"\xff\xfb\x90\x64" + os.urandom(50))
    (music / "empty.ogg").touch()
    (music / "words.flac").write_text("these are words and no music\n" * 100)
    (music / "circle.wav").symlink_to(music / "circle.wav")
    (music / "gone.wav").symlink_to(music / "nowhere")
    flac = write_audio(music / "torn.flac", tones(0.4)).read_bytes()
    (music / "torn.flac").write_bytes(flac[: len(flac) // 2])
    failed, _, counts = encode()
    assert counts == (9, 2, 7)
    for name, words in {
        "cut.mp3": "cut short",
        "wrong.mp3": "no audio",
        "empty.ogg": "it has no bytes",
        "words.flac": "holds no sound",
        "circle.wav": "cannot be read",
        "gone.wav": "cannot be read: No such file",
        "torn.flac": "",
    }.items():
        (said,) = (line for line in failed if name in line)
        assert words in said or "damaged" in said
        assert "\n" not in said


def test_odd_formats_are_encoded(encode, music, write_audio, tones, sample_of):
    write_audio(music / "eight.wav", tones(0.3, 96_000, channels=8), 96_000, codec="pcm_s24le")
    write_audio(music / "phone.wav", tones(0.3, 8_000, channels=1), 8_000)
    write_audio(music / "click.wav", np.full((1, 1), 0.5))
    assert encode()[2] == (4, 4, 0)
    assert [len(sample_of(name)["target_latents"]) for name in ("eight", "phone", "click")] == [7, 7, 1]


def test_an_hour_is_cut_and_said_so_without_decoding_it_all(encode, music, sample_of):
    with wave.open(str(music / "hour.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8_000)
        file.writeframes(b"\x80" * 8_000 * 3_600)
    failed, noticed, counts = encode()
    assert (failed, counts) == ([], (2, 2, 0))
    assert any(
        "1 songs are longer than 0.5 seconds (--max-duration) and are cut there: hour.wav" in it for it in noticed
    )
    assert len(sample_of("hour")["target_latents"]) == 12


NAMES = [
    "🎵🎶 emoji",
    "\"quotes\" and 'more'",
    "new\nline",
    "tab\tand\x1b[31mcolour",
    "שיר עברי",
    "a\u202eb",
    "夜" * 60,
    "-rf",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_names_of_every_kind_are_encoded_and_none_commands_the_terminal(
    music, write_audio, tones, checkpoint_root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    for number, name in enumerate(NAMES):
        write_audio(music / f"{name}.wav", tones(0.1 + number / 100))
    (music / "bad\x1b[2J\nname.wav").write_text("no sound")
    words = ["--checkpoint-dir", str(checkpoint_root), "--model", "base", "--device", "cpu", "--plain"]
    code = cli.main(["preprocess", *words, "--audio-dir", str(music), "--tensor-output", str(tmp_path / "tensors")])
    out, err = capsys.readouterr()
    assert code == 1
    assert len(list((tmp_path / "tensors").glob("*.pt"))) == len(NAMES) + 1
    assert f"{len(NAMES) + 1} songs encoded" in out
    assert "1 failed" in out
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert len(err.splitlines()) == 1, "one line for the one bad song"


def test_fifty_thousand_characters_of_lyrics_are_cut_and_said_so(encode, music, sample_of):
    (music / "good.lyrics.txt").write_text("la la la\n" * 5_556)
    _, noticed, counts = encode()
    assert counts == (1, 1, 0)
    tokens = sample_of("good")["metadata"]["woodshed"]["lyric_tokens"]
    assert tokens > 2048
    assert any(f"the lyric has {tokens} tokens; the model reads 2048, {tokens - 2048} are cut" in it for it in noticed)


def test_words_that_are_no_text_spoil_their_own_song_only(encode, music, write_audio, tones):
    for name in ("latin", "half", "typed"):
        write_audio(music / f"{name}.wav", tones(0.2))
    (music / "latin.txt").write_bytes("caption: caf\u00e9\n".encode("latin-1"))
    (music / "half.json").write_text('{"caption": "half a file')
    (music / "typed.json").write_text('{"caption": ["a", "list"], "bpm": {"no": 1}}')
    failed, _, counts = encode()
    assert counts == (4, 1, 3)
    assert any("latin.txt, line 1: this is no UTF-8 text" in line for line in failed)
    assert any("half.json is not valid JSON: line 1" in line for line in failed)
    assert [line for line in failed if "typed.json" in line] == [
        f'{music / "typed.json"}, caption must be text or a number; got ["a", "list"].',
        f'{music / "typed.json"}, bpm must be text or a number; got {{"no": 1}}.',
    ]


def test_a_dataset_json_with_wrong_types_gives_the_songs_that_are_right(encode, tmp_path):
    samples = [
        {"audio_path": "good.wav", "caption": "fine"},
        7,
        {"audio_path": 3.5},
        {"audio_path": "good.wav", "bpm": []},
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(samples))
    failed, _, counts = encode(dataset_json=path)
    assert counts == (4, 1, 3)
    assert [line.split("mine.json, ")[1].split(":")[0] for line in failed] == ["sample 2", "sample 3", "sample 4"]


def test_a_table_with_commas_and_quotes_is_read_as_spreadsheets_write_it(encode, music, sample_of):
    (music / "metadata.csv").write_text('file,caption,lyrics\ngood.wav,"slow, ""warm"", low","a\nb"\n')
    assert encode()[2] == (1, 1, 0)
    metadata = sample_of("good")["metadata"]
    assert (metadata["caption"], metadata["lyrics"]) == ('slow, "warm", low', "a\nb")


def test_the_count_of_a_folder_in_which_every_song_is_bad_is_an_error_with_every_reason(settings_for, music):
    (music / "good.txt").write_text("nonsense: x")
    with pytest.raises(Exception, match="there is no field nonsense"):
        list(preprocess(settings_for()))


@pytest.fixture
def small_disk(tmp_path):
    """Mount a tiny disk at `tmp_path/tensors`: `small_disk("size=100k")`; only an administrator may."""
    mounted = []

    def mount(options):
        (tmp_path / "tensors").mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path / "tensors")]
        try:
            done = subprocess.run(words, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip("nobody may mount a disk here")
        mounted.append(tmp_path / "tensors")

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def command(music, checkpoint_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))

    def run(*more):
        words = ["--checkpoint-dir", str(checkpoint_root), "--model", "base", "--device", "cpu", "--plain", *more]
        code = cli.main(["preprocess", *words, "--audio-dir", str(music), "--tensor-output", str(tmp_path / "tensors")])
        return code, capsys.readouterr().err

    return run


def test_a_full_disk_ends_the_run_in_words_and_the_next_one_goes_on(small_disk, command, music, write_audio, tones):
    for number in range(6):
        write_audio(music / f"{number}.wav", tones(2 + number / 10))
    small_disk("size=130k")
    code, err = command()
    assert code == 1
    assert "cannot be written (No space left on device). Make room on the disk or choose another folder" in err
    assert "Traceback" not in err
    small_disk("size=50m")
    assert command() == (0, "")


def test_a_read_only_disk_is_refused_before_the_first_song(small_disk, command):
    small_disk("ro")
    code, err = command()
    assert code == 1
    assert "cannot be written" in err
