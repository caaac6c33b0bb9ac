"""`woodshed models` and `woodshed models get` as they are typed."""

import json
import subprocess
import sys

import pytest

from tests.models.test_fetch import FakeHub
from woodshed import cli
from woodshed.commands import models


@pytest.fixture
def hub(tmp_path, golden, monkeypatch):
    """A hub at whose every address there is the toy base model, at the root and in each of the main folders."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    files = {}
    for name, before in (
        ("acestep-v15-base", ""),
        ("acestep-v15-turbo", None),
        ("vae", None),
        ("Qwen3-Embedding-0.6B", None),
    ):
        for path in (golden / "checkpoints" / name).iterdir():
            files[(f"{name}/" if before is None else "") + path.name] = path.read_bytes()
    found = FakeHub(files)
    monkeypatch.setattr(models, "connect", lambda: found)
    return found


def test_a_model_comes_with_what_every_model_needs_and_is_then_listed(hub, capsys):
    assert cli.main(["models", "get", "base", "--plain"]) == 0
    said = capsys.readouterr().out
    assert "acestep-v15-base from ACE-Step/acestep-v15-base: 3 files" in said
    assert "vae is complete" in said
    assert cli.main(["models"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("acestep-v15-base")
    assert "missing" not in captured.out
    hub.fetched.clear()
    assert cli.main(["models", "get", "base"]) == 0
    assert hub.fetched == []
    assert "everything is there" in capsys.readouterr().out
    assert cli.main(["doctor", "--device", "cpu", "--digests", "--json"]) in (0, 1)
    texts = [item["text"] for item in json.loads(capsys.readouterr().out)["findings"]]
    assert "acestep-v15-base: every byte is as ACE-Step/acestep-v15-base publishes it." in texts


@pytest.mark.usefixtures("hub")
def test_a_program_reads_what_was_fetched(capsys):
    assert cli.main(["models", "get", "turbo", "vae", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)["fetched"]
    assert [entry["folder"].replace("\\", "/") for entry in done] == [
        "checkpoints/acestep-v15-turbo",
        "checkpoints/vae",
        "checkpoints/Qwen3-Embedding-0.6B",
    ]
    assert done[0]["repository"] == "ACE-Step/Ace-Step1.5"


def test_a_community_model_gets_the_name_that_is_given(hub, tmp_path):
    assert cli.main(["models", "get", "jazz", "--repo", "someone/mine", "--checkpoint-dir", "here"]) == 0
    assert (tmp_path / "here" / "jazz" / "model.safetensors").is_file()
    assert hub.fetched[0] == "config.json"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["get"], 2, "Say which model"),
        (["gte", "base"], 2, "got gte"),
        (["--repo", "a/b"], 2, "--repo belongs to woodshed models get"),
        (["get", "base", "--subfolder", "x"], 2, "--subfolder belongs to --repo"),
        (["get", "a", "b", "--repo", "a/b"], 2, "--repo takes one name"),
        (["get", "zz"], 1, "ACE-Step publishes no model zz"),
        (["get", "../x", "--repo", "a/b"], 1, "cannot be called ../x"),
    ],
)
def test_what_is_typed_wrongly_is_answered(words, code, part, capsys, tmp_path):
    assert cli.main(["models", *words]) == code
    assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hub")
def test_without_the_library_the_line_that_installs_it_is_given(monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert cli.main(["models", "get", "base"]) == 1
    assert 'pip install "woodshed[models]"' in capsys.readouterr().err


def test_models_are_listed_without_loading_torch(checkpoint_root):
    program = (
        "import sys, woodshed.cli as cli\n"
        "code = cli.main(['models', '--checkpoint-dir', sys.argv[1]])\n"
        "sys.exit(code or bool({'torch', 'safetensors', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, checkpoint_root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "acestep-v15-xl-turbo" in done.stdout
