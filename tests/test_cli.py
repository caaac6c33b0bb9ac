"""The command line as its users type it: answers, exit codes, and no model loaded for a typing mistake."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

from woodshed import __version__, cli


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run the program in this process; return exit code, standard output and standard error."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def train_words(checkpoint_root, tmp_path, *more):
    return (
        *("train", "--checkpoint-dir", checkpoint_root, "--model", "acestep-v15-base", "--device", "cpu"),
        *("--dataset-dir", checkpoint_root.parent / "preprocessed_fp32", "--output-dir", tmp_path / "out"),
        *("--rank", "2", "--epochs", "2", "--warmup-steps", "0", "--num-workers", "0", "--plain", *more),
    )


def test_help_lists_every_command(run):
    for words in (("--help",), ("-h",), ("help",)):
        code, out, _ = run(*words)
        assert code == 0
        assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"woodshed {__version__}\n", "")


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_and_full_help(run, command):
    for flag in ("--help", "-h", "--help-all"):
        code, out, err = run(command, flag)
        assert (code, err) == (0, "")
        assert f"usage: woodshed {command}" in out


def test_help_never_loads_torch():
    code = "import sys, woodshed.cli; woodshed.cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for words in ([], ["train", "--help-all"], ["presets", "list"], ["--version"], ["train", "--rank", "0"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "There is no command trian. Did you mean train?"),
        (["train", "--rnak", "3"], "There is no flag --rnak. Did you mean --rank?"),
        (["train", "--rank"], "Argument --rank: expected one argument."),
        (["presets", "shwo"], "invalid choice"),
        (["presets", "show"], "Say which preset to show"),
    ],
)
def test_wrong_usage_exits_with_two_and_a_hint(run, words, sentence):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_missing_and_bad_settings_exit_with_one_and_all_problems(run):
    code, _, err = run("train", "--rank", "0", "--lr", "nan", "--optimizer-type", "sgd")
    assert code == 1
    for part in (
        "rank must be at least 1",
        "learning_rate must be",
        "optimizer_type must be one of",
        "model is required",
    ):
        assert part in err


def test_bad_values_unknown_device_and_wrong_target_come_in_one_message(run, checkpoint_root, tmp_path):
    bad = "--rank 0 --dropout 1 --lr -1 --epochs 0 --batch-size 0 --cfg-ratio 2 --device cuda:99 --optimizer-type x"
    words = train_words(checkpoint_root, tmp_path, *bad.split(), "--target-modules", "zz_proj")
    code, _, err = run(*words)
    assert code == 1
    for part in ("rank must", "dropout must", "learning_rate must", "epochs must", "batch_size must", "cfg_ratio must"):
        assert part in err, part
    for part in ("cuda:99", "optimizer_type must", "zz_proj"):
        assert part in err, part
    assert not (tmp_path / "out").exists()


def test_training_from_the_command_line_writes_a_run_that_repeats_itself(run, checkpoint_root, tmp_path):
    code, out, err = run(*train_words(checkpoint_root, tmp_path, "--log-every", "1"))
    assert (code, err) == (0, "")
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {"run.toml", "events.jsonl", "woodshed.log", "runs", "final"}
    assert "final" in out
    first = (folder / "final" / "adapter_model.safetensors").read_bytes()
    values = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    assert values["rank"] == 2
    code, _, err = run("train", "--config", folder / "run.toml", "--output-dir", tmp_path / "again", "--plain")
    assert (code, err) == (0, "")
    assert (tmp_path / "again" / "final" / "adapter_model.safetensors").read_bytes() == first


def test_the_same_output_folder_twice_is_refused(run, checkpoint_root, tmp_path):
    assert run(*train_words(checkpoint_root, tmp_path))[0] == 0
    code, _, err = run(*train_words(checkpoint_root, tmp_path))
    assert code == 1
    assert "already holds a run" in err


def test_a_preset_gives_values_and_flags_win_over_it(run, checkpoint_root, tmp_path):
    assert run(*train_words(checkpoint_root, tmp_path, "--preset", "quick_test", "--epochs", "1"))[0] == 0
    text = (tmp_path / "out" / "run.toml").read_text(encoding="utf-8")
    assert "save_every = 5  # preset quick_test" in text
    assert "epochs = 1  # command line" in text


def test_an_unknown_preset_is_answered_with_those_that_exist(run):
    code, _, err = run("train", "--preset", "quick")
    assert code == 1
    assert "quick_test" in err


def test_presets_are_listed_and_shown(run):
    code, out, _ = run("presets", "list")
    assert code == 0
    assert "lokr_strong          built in" in out
    assert run("presets", "show", "lokr_strong")[1] == "adapter_type = lokr\nlokr_factor = 8\n"
    assert "defaults" in run("presets", "show", "recommended")[1]


def test_models_are_listed_for_people_and_for_machines(run, checkpoint_root):
    code, out, _ = run("models", "--checkpoint-dir", checkpoint_root)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "acestep-v15-base",
        "acestep-v15-sft",
        "acestep-v15-turbo",
        "acestep-v15-xl-base",
        "acestep-v15-xl-turbo",
    ]
    rows = json.loads(run("models", "--checkpoint-dir", checkpoint_root, "--json")[1])["models"]
    assert rows[2] == {"name": "acestep-v15-turbo", "kind": "turbo", "size": "2B", "official": True}
    assert rows[3]["size"] == "XL"


def test_a_missing_checkpoint_folder_exits_with_one(run, tmp_path):
    code, _, err = run("models", "--checkpoint-dir", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere" in err


def test_the_users_checkpoint_folder_is_remembered(run, checkpoint_root, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings.toml").write_text(f"checkpoint_dir = '{checkpoint_root}'\n", encoding="utf-8")
    assert run("models")[0] == 0


def test_help_pages_hold_every_command_and_flag():
    pages = cli.help_pages()
    for name in cli.COMMANDS:
        assert f"## woodshed {name}" in pages
    assert "--log-heavy-every" in pages


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "models", cli.Command("models", "x", lambda *_: None, broken))
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


def test_an_interrupt_exits_with_130(monkeypatch, run):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "models", cli.Command("models", "x", lambda *_: None, interrupted))
    code, _, err = run("models")
    assert code == 130
    assert "Interrupted." in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a pipe in other ways")
@pytest.mark.parametrize("words", [["--help"], ["train", "--help-all"], ["nonsense"]], ids=lambda words: words[0])
def test_output_into_a_closed_pipe_ends_the_program_without_a_word(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "woodshed", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8", timeout=60, check=False)
    os.close(writer)
    if words == ["nonsense"]:  # says nothing to standard output
        assert (done.returncode, "There is no command nonsense" in done.stderr) == (2, True)
    else:
        assert (done.returncode, done.stderr) == (130, "")


def test_a_run_file_or_preset_from_elsewhere_cannot_choose_where_to_write(run, tmp_path, monkeypatch):
    (tmp_path / "here" / "presets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "run.toml").write_text(f"output_dir = '{tmp_path / 'stray'}'\ndataset_dir = 'x'\n", encoding="utf-8")
    (tmp_path / "here" / "presets" / "gift.toml").write_text("log_dir = '../../stray'\n", encoding="utf-8")
    for flags, word in ((("--config", theirs / "run.toml"), "--output-dir"), (("--preset", "gift"), "--log-dir")):
        code, _, err = run("train", *flags, "--plain", "--yes")
        assert code == 1
        assert f"say so: {word}" in " ".join(err.split())
    assert not (tmp_path / "stray").exists()
