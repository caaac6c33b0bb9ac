"""What is printed may be read by somebody who has enough early: `woodshed ... | head -3`."""

import subprocess
import sys

import pytest

from woodshed.training.checkpoint import list_checkpoints, read_resume_point

pytestmark = [
    pytest.mark.slow,  # processes of their own; tests/monitor and tests/test_cli.py have what is quick
    pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a pipe in other ways"),
]


def read_a_little(words, world, lines, *, both=False):
    """Run the program, read so many lines and close the pipe; return its code and what it said to standard error."""
    with subprocess.Popen(
        [sys.executable, "-m", "woodshed", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
        cwd=world.folder,
        env=world.environment,
    ) as process:
        for _ in range(lines):
            assert process.stdout.readline()
        process.stdout.close()
        said = b"" if both else process.stderr.read()
        return process.wait(timeout=120), said.decode()


@pytest.mark.parametrize("both", [False, True], ids=["output", "both streams"])
def test_a_run_whose_output_is_cut_off_stops_like_an_interrupted_one_and_saves(world, encoded, tmp_path, both):
    assert encoded.code == 0, encoded.err
    words = [
        *("train", "--plain", "--checkpoint-dir", world.checkpoints, "--model", "base", "--device", "cpu"),
        *("--dataset-dir", "tensors", "--output-dir", tmp_path / "out", "--rank", 4, "--epochs", 100_000),
        *("--save-every", 0, "--log-every", 1, "--num-workers", 0),
    ]
    code, said = read_a_little(words, world, 3, both=both)
    assert code == 130
    assert "Traceback" not in said
    assert both or "stops and saves its state" in said
    (saved,) = list_checkpoints(tmp_path / "out")
    assert read_resume_point(saved).position.step >= 1


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help-all"], ["doctor", "--plain"], ["dataset", "tensors"], ["presets", "list"]],
    ids=lambda words: words[0],
)
def test_other_commands_end_without_a_word(world, encoded, words):
    assert encoded.code == 0, encoded.err
    code, said = read_a_little(words, world, 0)
    assert code in (0, 1, 130)  # 0, 1: it had written everything before the pipe was closed
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
