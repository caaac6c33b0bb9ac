"""The real program in a process of its own, away from the user's settings."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from woodshed import cli
from woodshed.toy.songs import write_songs

KEPT = ("first light.wav", "river.flac", "schlaflied.opus")  # half of the songs are enough here
UNICODE_NAME = "Größe & 音楽 (live) 🎵"
PROGRAM = (sys.executable, "-m", "woodshed")


@dataclass(frozen=True)
class Done:
    """What a finished process said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class World:
    """Songs, checkpoints and a place to work, shared by the tests of one file; each test has folders of its own."""

    folder: Path
    checkpoints: Path

    @property
    def environment(self) -> dict[str, str]:
        """As many threads as this process has, because sums depend on it to the last bit."""
        threads = str(torch.get_num_threads())
        config = str(self.folder / "config")
        return os.environ | {"WOODSHED_CONFIG_DIR": config, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": threads}

    def start(self, *words: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*PROGRAM, *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, *words: object) -> Done:
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        return Done(process.returncode, out, err)

    def script(self, path: Path, *words: object, minutes: int = 5) -> Any:
        """Run one of the scripts beside the tests to its good end, and return the JSON that it prints."""
        done = subprocess.run(
            [sys.executable, str(path), *map(str, words)],
            capture_output=True,
            encoding="utf-8",
            env=self.environment,
            timeout=60 * minutes,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def train_words(self, output: str, *more: object) -> tuple[object, ...]:
        """Train for 20 epochs of two steps, on the songs that `preprocess` made."""
        return (
            *("train", "--checkpoint-dir", self.checkpoints, "--model", "base", "--dataset-dir", "tensors"),
            *("--output-dir", output, "--device", "cpu", "--rank", 4, "--epochs", 20, "--gradient-accumulation", 2),
            *(
                "--warmup-steps",
                5,
                "--save-every",
                5,
                "--log-every",
                5,
                "--log-heavy-every",
                20,
                "--lr",
                "1e-3",
                "--no-gradient-checkpointing",
                *more,
            ),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, checkpoint_root: Path) -> World:
    """Three songs, one of them with a name of many scripts in a folder of its own, and the toy checkpoints."""
    folder = tmp_path_factory.mktemp("world")
    description = write_songs(folder / "songs")
    content = json.loads(description.read_text(encoding="utf-8"))
    content["samples"] = [sample for sample in content["samples"] if sample["audio_path"] in KEPT]
    for path in description.parent.iterdir():
        if path.name not in (*KEPT, description.name):
            path.unlink()
    (folder / "songs" / "ältere").mkdir()
    (folder / "songs" / "river.flac").rename(folder / "songs" / "ältere" / f"{UNICODE_NAME}.flac")
    (river,) = (sample for sample in content["samples"] if sample["audio_path"] == "river.flac")
    river["audio_path"] = f"ältere/{UNICODE_NAME}.flac"
    description.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return World(folder, checkpoint_root)


@pytest.fixture(scope="module")
def encoded(world: World) -> Done:
    """The songs as tensors."""
    return world.run(
        *("preprocess", "--checkpoint-dir", world.checkpoints, "--model", "base", "--device", "cpu"),
        *("--audio-dir", "songs", "--dataset-json", "songs/dataset.json", "--tensor-output", "tensors"),
    )


@pytest.fixture(scope="module")
def trained(world: World, encoded: Done) -> Done:
    """A run that nobody disturbed, in `whole`."""
    assert encoded.code == 0, encoded.err
    return world.run(*world.train_words("whole"))


@pytest.fixture
def run_here(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the program in this process, where a process of its own would prove nothing more."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(world.folder / "config"))

    def call(*words: object) -> Done:
        code = cli.main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def listing() -> Callable[[Path], dict[str, bytes | None]]:
    """Everything below a folder: files with their content, folders with None."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
