"""`woodshed inspect` as it is typed."""

import json

import pytest

from woodshed import cli


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command; return exit code, standard output and standard error."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main(["inspect", *map(str, words), "--plain"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_facts_tables_and_notices_are_printed_for_people(run, golden, checkpoint_root):
    path = golden / "adapters" / "lora_r4"
    code, out, err = run(path, "--checkpoint-dir", checkpoint_root, "--model", "base", "--device", "cpu")
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", f"{path}: adapter")
    assert "  parameters             7,168" in lines
    assert "  is live                yes" in lines
    table = lines[lines.index("size of the change, % of the weights") :]
    assert [row.split()[0] for row in table[1:6]] == ["layer", "0", "1", "2", "3"]
    assert len({row.rindex(row.split()[-1]) + len(row.split()[-1]) for row in table[1:6]}) == 1  # right-aligned
    assert "carries no recipe" in lines[-1]


def test_the_same_is_printed_for_machines(run, checkpoint_root):
    code, out, _ = run(checkpoint_root / "acestep-v15-base", "--json")
    found = json.loads(out)
    assert (code, found["kind"], found["facts"]["kind"]) == (0, "model", "base")
    assert found["tables"]["parts"][0]["part"] == "decoder"


def test_what_a_file_says_cannot_reach_the_terminal_as_commands(run, tmp_path):
    import torch

    from woodshed.sampling.waveform import write_sound

    recipe = {"woodshed": "1", "prompt": "\x1b[2Jgone\n\x07"}
    write_sound(tmp_path / "a.flac", torch.zeros(2, 5), tags={"comment": json.dumps(recipe)})
    out = run(tmp_path / "a.flac")[1]
    assert "prompt    ?[2Jgone??" in out
    assert "\x1b" not in out


def test_nothing_to_inspect_exits_with_one_and_no_path_with_two(run):
    code, _, err = run("nowhere")
    assert code == 1
    assert "There is nothing at nowhere" in err
    assert run()[0] == 2
