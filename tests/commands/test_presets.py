"""`woodshed presets`, as its users type it."""

import json

import pytest

from woodshed import cli


@pytest.fixture
def presets(capsys, tmp_path, monkeypatch):
    """Run `woodshed presets` in a folder of its own; return exit code, standard output and standard error."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main(["presets", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_preset_lives_from_saving_to_deleting(presets, tmp_path):
    code, out, err = presets("save", "mine", "--rank", "16", "--optimizer-type", "prodigy")
    assert (code, err) == (0, "")
    assert out.startswith("rank = 16\noptimizer_type = prodigy\nSaved as ")
    assert presets("show", "mine")[1] == "rank = 16\noptimizer_type = prodigy\n"
    assert "mine                 user" in presets("list")[1]
    assert presets("export", "mine", "out.json")[0] == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"rank": 16, "optimizer_type": "prodigy"}
    assert presets("delete", "mine")[0] == 0
    assert presets("show", "mine")[0] == 1
    assert presets("import", "out.json", "again", "--place", "project")[0] == 0
    assert (tmp_path / "presets" / "again.toml").is_file()
    assert "again                project" in presets("list")[1]


@pytest.mark.parametrize(
    "words",
    [
        ("save", "mine", "--rank", "8", "--target-modules", "q_proj", "v_proj"),
        ("save", "--rank", "8", "mine", "--target-modules", "q_proj", "v_proj"),
        ("--rank", "8", "save", "--target-modules", "q_proj", "v_proj", "--place", "user", "mine"),
        ("--place", "user", "--rank=8", "--target-modules", "q_proj,v_proj", "--plain", "save", "mine"),
    ],
)
def test_flags_and_the_name_may_stand_in_any_order(presets, words):
    code, _, err = presets(*words)
    assert (code, err) == (0, "")
    assert json.loads(presets("show", "--json", "mine")[1]) == {"rank": 8, "target_modules": ["q_proj", "v_proj"]}


def test_what_export_works_on_may_stand_around_its_flags(presets, tmp_path):
    assert presets("export", "quick_test", "--replace", "out.toml")[0] == 0
    assert (tmp_path / "out.toml").is_file()


def test_a_preset_can_begin_with_another_and_with_a_run_file(presets, tmp_path):
    (tmp_path / "run.toml").write_text("seed = 7\n")
    words = ("--preset", "quick_test", "--config", "run.toml", "--rank", "8", "--alpha", "16")
    assert presets("save", "mine", *words)[0] == 0
    said = json.loads(presets("show", "mine", "--json")[1])
    assert said == {
        "rank": 8,
        "epochs": 10,
        "warmup_steps": 10,
        "save_every": 5,
        "log_every": 1,
        "alpha": 16,
        "seed": 7,
    }


def test_what_an_import_leaves_out_is_said(presets, tmp_path):
    (tmp_path / "theirs.json").write_text('{"rank": 8, "turbo_boost": true}')
    code, out, _ = presets("import", "theirs.json")
    assert code == 0
    assert "turbo_boost is not a setting; it was left out." in out
    assert presets("show", "theirs")[1] == "rank = 8\n"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("show",), 2, "Say which preset to show: woodshed presets show NAME; got nothing."),
        (("save", "a", "b"), 2, "woodshed presets save NAME [flags]; got a b."),
        (("import",), 2, "woodshed presets import FILE [NAME]; got nothing."),
        (("export", "quick_test"), 2, "woodshed presets export NAME FILE; got quick_test."),
        (("list", "mine"), 2, "takes no further words; got mine."),
        (("save", "--target-modules", "q_proj", "mine"), 2, "Every word behind --target-modules counts as one of its"),
        (("save", "CON"), 1, "a device on Windows"),
        (("save", "../x"), 1, "A preset cannot be called"),
        (("save", "quick_test"), 1, "built-in"),
        (("save", "x", "--rank", "0"), 1, "rank must be at least 1"),
        (("delete", "quick_test"), 1, "cannot be deleted"),
        (("import", "nowhere.json"), 1, "There is no file nowhere.json"),
        (("save", "x", "--place", "moon"), 2, "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_explained(presets, tmp_path, words, code, sentence):
    found, out, err = presets(*words)
    assert (found, out) == (code, "")
    assert sentence in err
    assert not list(tmp_path.rglob("*.toml"))


def test_a_taken_name_needs_replace(presets):
    assert presets("save", "mine", "--rank", "8")[0] == 0
    code, _, err = presets("save", "mine", "--rank", "4")
    assert code == 1
    assert "There is a preset mine" in err
    assert presets("save", "mine", "--rank", "4", "--replace")[0] == 0
    assert presets("show", "mine")[1] == "rank = 4\n"
