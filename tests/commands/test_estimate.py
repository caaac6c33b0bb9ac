"""`woodshed estimate` as it is typed, and what `woodshed train` makes of it."""

import json

import pytest

from woodshed import cli


@pytest.fixture
def run(tmp_path, monkeypatch, checkpoint_root, golden, capsys):
    """Run a command on the toy base model and the original's own songs; return code, output and errors."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(command, *words):
        place = ("--checkpoint-dir", checkpoint_root, "--model", "base", "--device", "cpu", "--plain")
        code = cli.main([command, *map(str, (*place, "--dataset-dir", golden / "preprocessed_fp32", *words))])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_an_estimate_is_shown_written_and_trained_from(run, tmp_path):
    code, out, err = run("estimate", "--estimate-batches", "6", "--output", "deep/estimate.json", "--top-k", "3")
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "deep" / "estimate.json").read_text(encoding="utf-8"))
    best = [entry["name"] for entry in stored["entries"][:3]]
    lines = out.splitlines()
    assert lines[0] == "44 modules of acestep-v15-base on 2 songs: 6 batches on cpu in float32."
    rows = [line.split() for line in lines if line.strip().startswith(("1* ", "2* ", "3* ", "4  "))]
    assert [row[1] for row in rows[:3]] == best
    assert all(set(row[-1]) == {"#"} for row in rows)
    assert [len(row[-1]) for row in rows] == sorted((len(row[-1]) for row in rows), reverse=True)
    assert "  woodshed train --targets-from deep/estimate.json --top-k 3 ..." in lines
    assert any(line.startswith("Attention type: ") for line in lines)
    assert f"Rank correlation of two halves of the batches: {stored['half_correlation']:.2f}." in out

    few = ("--epochs", "1", "--rank", "2", "--warmup-steps", "0", "--targets-from", "deep/estimate.json")
    code, out, err = run("train", *few, "--top-k", "2", "--output-dir", "out")
    assert (code, err) == (0, "")
    config = json.loads((tmp_path / "out" / "final" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == set(best[:2])


def test_layers_are_ranked_as_a_whole_without_a_second_picture(run, tmp_path):
    code, out, _ = run("estimate", "--estimate-batches", "2", "--granularity", "layer", "--output", "e.json")
    assert code == 0
    assert "Response by layer" not in out
    entries = json.loads((tmp_path / "e.json").read_text())["entries"]
    assert {entry["name"] for entry in entries} == {f"layers.{number}" for number in range(4)}
    assert {len(entry["modules"]) for entry in entries} == {11}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--estimate-batches", "1"), "estimate_batches must be at least 2; got 1"),
        (("--top-k", "0"), "top_k must be at least 1; got 0"),
        (("--top-k", "99"), "top_k is 99, but acestep-v15-base has 44 modules to rank"),
        (("--granularity", "layers"), "granularity must be one of module, layer; got layers"),
        (("--dataset-dir", "nowhere"), "There is no dataset folder nowhere"),
    ],
    ids=" ".join,
)
def test_bad_input_exits_with_one_sentence_and_writes_nothing(run, tmp_path, words, sentence):
    code, out, err = run("estimate", "--output", "e.json", *words)
    assert (code, out) == (1, "")
    assert sentence in err
    assert not list(tmp_path.iterdir())


def test_for_programs_the_ranking_is_all_that_is_printed(run, tmp_path):
    code, out, err = run("estimate", "--estimate-batches", "2", "--output", "e.json", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "e.json").read_text())
