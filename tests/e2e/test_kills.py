"""A process that is killed (no signal handler, no clean-up) loses at most the song in hand, and nothing it saved."""

import sys
from pathlib import Path

import numpy as np
import pytest

from woodshed.toy.checkpoint import build_toy_root
from woodshed.toy.songs import write_audio

PROGRAM = Path(__file__).with_name("killing.py")
TRAINING = Path(__file__).with_name("killing_training.py")
SONGS = {3: 4, 50: 12}  # for so many kills

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no fork and no SIGKILL")


@pytest.fixture
def music(tmp_path, kills):
    folder = tmp_path / "music"
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(SONGS[kills]):
        sound = 0.2 * draw.normal(size=(2, 8_000 + 500 * number)).astype(np.float32)
        write_audio(folder / f"song {number}.wav", sound, sample_rate=16_000)
    return folder


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_next_run_completes_what_an_undisturbed_one_gives(kills, music, tmp_path, world):
    build_toy_root(tmp_path / "checkpoints")  # its tokenizer is read in no time
    words = [
        PROGRAM,
        tmp_path / "checkpoints",
        "acestep-v15-base",
        music,
        tmp_path / "tensors",
        tmp_path / "whole" / "tensors",
    ]
    said = world.script(*words, kills, 7, minutes=10)
    assert said["killed"] == kills
    assert said["same"]


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_training_loses_nothing_that_was_saved_and_ends_as_an_undisturbed_one(
    kills, tmp_path, world, checkpoint_root
):
    said = world.script(TRAINING, checkpoint_root, tmp_path, kills, 7, minutes=30)
    assert said["anywhere"] + said["saving"] == kills
    assert (said["damaged"], said["lost"]) == (0, 0)
    assert said["same"] == said["completed"] > 0
