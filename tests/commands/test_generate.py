"""`woodshed generate` as it is typed."""

import json

import pytest

from woodshed import cli
from woodshed.sampling.waveform import read_tags


@pytest.fixture
def run(tmp_path, monkeypatch, checkpoint_root, capsys):
    """Run the command on the toy base model; return exit code, standard output and standard error."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(*words):
        usual = ("--checkpoint-dir", checkpoint_root, "--model", "base", "--device", "cpu", "--plain")
        code = cli.main(["generate", *map(str, usual), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


SHORT = ("--prompt", "warm funk", "--duration", "0.2", "--steps", "1")


def test_a_song_is_made_from_the_command_line_and_says_what_made_it(run, tmp_path, golden):
    (tmp_path / "words.txt").write_text("la la", encoding="utf-8")
    adapters = golden / "adapters"
    code, out, err = run(
        *(*SHORT, "--output", "songs/a.flac", "--lyrics", "@words.txt", "--guidance-interval", "0.1", "0.9"),
        *("--adapter", adapters / "lora_r4", "--adapter", adapters / "lora_r2_mlp", "--strength", "0.5"),
    )
    assert (code, err) == (0, "")
    assert [path.name for path in sorted((tmp_path / "songs").iterdir())] == ["a-lora_r2_mlp.flac", "a-lora_r4.flac"]
    assert out.splitlines()[0] == "0.2 s of music from acestep-v15-base on cpu in float32, 2 versions."
    assert "lora_r4: 1 steps done" in out
    recipe = json.loads(read_tags(tmp_path / "songs" / "a-lora_r4.flac")["comment"])
    assert (recipe["lyrics"], recipe["strength"], recipe["guidance_interval"]) == ("la la", 0.5, [0.1, 0.9])


def test_a_run_file_gives_values_and_flags_win(run, tmp_path):
    (tmp_path / "song.toml").write_text('prompt = "cold funk"\nseed = 7\nduration = 0.2\nsteps = 1\n', encoding="utf-8")
    assert run("--config", "song.toml", "--output", "a.wav", "--prompt", "warm funk")[0] == 0
    recipe = json.loads(read_tags(tmp_path / "a.wav")["comment"])
    assert (recipe["prompt"], recipe["seed"]) == ("warm funk", 7)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--duration", "0"), "duration must be more than 0; got 0"),
        (("--duration", "nan"), "duration must be"),
        (("--steps", "many"), "steps must be auto or a number; got many"),
        (("--steps", "0"), "steps must be at least 1; got 0"),
        (("--guidance", "0.5"), "guidance must be at least 1; got 0.5"),
        (("--guidance-interval", "0.9", "0.1"), "two numbers from 0 to 1, the smaller first"),
        (("--guidance-interval", "0.9"), "two numbers from 0 to 1, the smaller first"),
        (("--strength", "inf"), "strength must be"),
        (("--output", "a.mp3"), "must end in .wav or .flac; got .mp3"),
        (("--adapter", "nowhere"), "There is no adapter at nowhere"),
        (("--lyrics", "@nowhere.txt"), "The lyrics in nowhere.txt cannot be read"),
    ],
    ids=" ".join,
)
def test_bad_input_exits_with_one_sentence_and_writes_nothing(run, tmp_path, words, sentence):
    code, out, err = run(*SHORT, "--output", "a.wav", *words)
    assert (code, out) == (1, "")
    assert sentence in err
    assert not list(tmp_path.iterdir())


def test_prompt_duration_and_output_are_required(run):
    code, _, err = run()
    assert code == 1
    assert [line.split(" is required")[0] for line in err.splitlines()] == ["prompt", "duration", "output"]


def test_for_programs_the_files_are_all_that_is_printed(run, golden):
    code, out, err = run(
        *SHORT, "--output", "a.wav", "--json", "--compare", "--adapter", golden / "adapters" / "lora_r4"
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == {"base": "a-base.wav", "lora_r4": "a-lora_r4.wav"}
