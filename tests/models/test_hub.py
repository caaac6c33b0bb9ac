"""The real library against a stand-in for huggingface.co on this machine, driven by the real command."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from tests.models.standin_hub import COMMIT, StandIn
from woodshed.models.fetched import differences, read_record

BASE, TURBO, VAE, TEXT = "acestep-v15-base", "acestep-v15-turbo", "vae", "Qwen3-Embedding-0.6B"
WEIGHTS = "model.safetensors"


@pytest.fixture
def standin(tmp_path, golden):
    """ACE-Step's repositories as they are laid out, at toy size, with the Python files that ACE-Step publishes."""
    root = tmp_path / "hub"
    checkpoints = golden / "checkpoints"
    shutil.copytree(checkpoints / BASE, root / "ACE-Step" / BASE)
    for name in (TURBO, VAE, TEXT):
        shutil.copytree(checkpoints / name, root / "ACE-Step" / "Ace-Step1.5" / name)
    (root / "ACE-Step" / BASE / "modeling_acestep.py").write_text("open('owned', 'w')", encoding="utf-8")
    (root / "ACE-Step" / BASE / "training.bin").write_bytes(b"pickle")
    found = StandIn(root)
    yield found
    found.server.shutdown()


@pytest.fixture
def get(tmp_path, standin):
    """Run `woodshed models get` in a process of its own, because the library reads its address when it is imported."""

    def run(*words, offline=False):
        environment = os.environ | {
            "HF_ENDPOINT": standin.address,
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "WOODSHED_CONFIG_DIR": str(tmp_path / "config"),
            "NO_PROXY": "*",
        }
        command = [sys.executable, "-m", "woodshed", "models", "get", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_model_arrives_whole_with_its_vae_and_text_encoder_and_nothing_that_could_run(get, tmp_path, golden):
    done = get("base")
    assert done.returncode == 0, done.stderr
    root = tmp_path / "checkpoints"
    for name in (BASE, VAE, TEXT):
        for path in (golden / "checkpoints" / name).iterdir():
            assert (root / name / path.name).read_bytes() == path.read_bytes()
        record = read_record(root / name)
        assert record.revision == COMMIT
        assert differences(root / name, record, reads_all=True) == []
    names = {path.name for path in root.rglob("*")}
    assert not {name for name in names if name.endswith((".py", ".bin", ".incomplete", ".fetching", ".lock"))}
    assert "left out, because they are code or not needed: modeling_acestep.py, training.bin" in done.stdout
    assert not (tmp_path / "owned").exists()


def test_a_fetch_that_was_cut_off_goes_on_where_it_stopped(get, standin, tmp_path):
    big = standin.root / "ACE-Step" / BASE / WEIGHTS
    content = big.read_bytes() + os.urandom(8_000_000)
    big.write_bytes(content)
    for part in (VAE, TEXT):
        (tmp_path / "checkpoints" / part).mkdir(parents=True)
    standin.break_once.add(WEIGHTS)
    first = get("base")
    assert first.returncode == 1
    assert "Traceback" not in first.stderr
    assert not (tmp_path / "checkpoints" / BASE / WEIGHTS).exists()
    standin.break_once.clear()
    standin.ranges.clear()
    standin.served.clear()
    done = get("base")
    assert done.returncode == 0, done.stderr
    ((name, asked),) = standin.ranges
    assert name == WEIGHTS
    assert int(asked.removeprefix("bytes=").split("-")[0]) > 1_000_000
    assert "config.json" not in standin.served  # it was complete
    found = hashlib.sha256((tmp_path / "checkpoints" / BASE / WEIGHTS).read_bytes()).digest()
    assert found == hashlib.sha256(content).digest()


def test_bytes_that_are_not_those_of_the_listing_are_refused_and_deleted(get, standin, tmp_path):
    standin.other_bytes.add(WEIGHTS)
    done = get("base")
    assert done.returncode == 1
    assert "came with other bytes than the hub states" in done.stderr
    assert not list((tmp_path / "checkpoints").rglob(WEIGHTS))


def test_without_a_network_it_says_what_is_missing(get, tmp_path):
    done = get("base", offline=True)
    assert done.returncode == 1
    assert f"Missing in checkpoints: {BASE}, {VAE}, {TEXT}." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_a_repository_that_does_not_exist_is_named(get):
    done = get("--repo", "nobody/nothing")
    assert done.returncode == 1
    assert "no public repository nobody/nothing" in done.stderr
