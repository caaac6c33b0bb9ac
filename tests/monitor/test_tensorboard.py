"""The curves, read back by TensorBoard itself."""

import dataclasses
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from woodshed.data.audio import decode
from woodshed.monitor.tensorboard import TensorBoard
from woodshed.sampling.waveform import write_sound
from woodshed.training.events import SampleMade, Saved, Started, StepDone, Validated

PLAIN_TAGS = ["train/epoch_loss", "train/grad_norm", "train/learning_rate", "train/loss"]
MODULE_TAGS = ["gradients/layers.0.self_attn.q_proj", "gradients/layers.1.cross_attn.v_proj"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def draw(folder):
    def call(events):
        with TensorBoard(folder) as board:
            for event in events:
                board(event)

    return call


def curves(folder):
    """Every curve in a folder: tag -> {step: value}, each step once."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    found = {}
    for tag in accumulator.Tags()["scalars"]:
        points = [(item.step, item.value) for item in accumulator.Scalars(tag)]
        assert [step for step, _ in points] == sorted({step for step, _ in points}), f"{tag} goes back and forth"
        found[tag] = dict(points)
    return found


def test_curves_hold_what_the_steps_measured(draw, folder, run_of):
    draw(run_of(epochs=4, log_every=1, heavy_every=1))
    found = curves(folder)
    assert sorted(found) == sorted(PLAIN_TAGS + MODULE_TAGS)
    steps = range(1, 13)
    assert found["train/loss"] == pytest.approx({step: 10 / step for step in steps})
    assert found["train/learning_rate"] == pytest.approx({step: 1e-4 * step for step in steps})
    assert found["train/grad_norm"] == pytest.approx({step: 0.1 * step for step in steps})
    assert found[MODULE_TAGS[0]] == pytest.approx({step: 0.5 / step for step in steps})
    assert found["train/epoch_loss"] == pytest.approx({3: 100, 6: 50, 9: 100 / 3, 12: 25})


@pytest.mark.parametrize(("every", "steps"), [(1, range(1, 13)), (5, [5, 10])])
def test_log_every_says_how_often_the_plain_curves_get_a_point(draw, folder, run_of, every, steps):
    draw(run_of(log_every=every))
    found = curves(folder)
    for tag in ("train/loss", "train/learning_rate", "train/grad_norm"):
        assert list(found[tag]) == list(steps)


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 6, 8, 10, 12]), (5, [5, 10])])
def test_log_heavy_every_says_how_often_the_layers_get_a_point(draw, folder, run_of, every, steps):
    draw(run_of(log_every=100, heavy_every=every))
    found = curves(folder)
    assert "train/loss" not in found
    for tag in MODULE_TAGS:
        assert list(found[tag]) == steps


def test_a_resumed_run_drops_what_a_crashed_one_drew_after_its_checkpoint(draw, folder, run_of):
    """Eleven steps were drawn; the run goes on from step 6 with a loss that differs."""
    crashed = [event for event in run_of(log_every=1) if not isinstance(event, StepDone) or event.step <= 11]
    draw(crashed[:-2])
    resumed = (
        dataclasses.replace(event, loss=7.0) if isinstance(event, StepDone) else event
        for event in run_of(log_every=1, first_step=6)
    )
    draw(resumed)
    expected = {step: 10 / step for step in range(1, 7)} | dict.fromkeys(range(7, 13), 7.0)
    assert curves(folder)["train/loss"] == pytest.approx(expected)
    assert list(curves(folder)["train/epoch_loss"]) == [3, 6, 9, 12]


def test_what_was_drawn_before_a_checkpoint_is_on_disk_with_it(folder, run_of):
    """A process that is killed closes nothing; only what was flushed counts."""
    started, *rest = run_of(log_every=1)
    board = TensorBoard(folder)
    board(started)
    for event in rest[:4]:
        board(event)
    board(Saved(folder.parent / "checkpoint-epoch-1", "checkpoint", 1, 3))
    assert list(curves(folder)["train/loss"]) == [1, 2, 3]
    board.__exit__(None, None, None)


def test_nothing_is_written_before_the_run_starts(folder):
    with TensorBoard(folder):
        pass
    assert not folder.exists()


def test_an_overflowed_step_is_a_gap_that_the_curve_survives(draw, folder, run_of):
    events = list(run_of(log_every=1))
    assert isinstance(events[0], Started)
    events[2] = dataclasses.replace(events[2], grad_norm=math.inf)
    draw(events)
    assert curves(folder)["train/grad_norm"][2] == math.inf
    assert curves(folder)["train/grad_norm"][3] == pytest.approx(0.3)


def test_validation_and_samples_can_be_looked_at_and_heard(draw, folder, run_of, tmp_path):
    write_sound(tmp_path / "a.wav", torch.tensor([[0.5], [-0.1]]).expand(2, 4800))
    found = Validated(2, 6, 3, 0.9, -0.1, 0.01, 0.7, -0.3, 0.02, 0.2, True, 1.5)
    gone = SampleMade(tmp_path / "gone.wav", 2, 6, 2, "b", 48_000, 0.1)
    draw([*run_of(), found, SampleMade(tmp_path / "a.wav", 2, 6, 1, "a", 48_000, 0.1), gone])
    assert {tag: value for tag, value in curves(folder).items() if tag.startswith("validation/")} == {
        f"validation/{name}": {6: pytest.approx(value)}
        for name, value in {
            "loss": 0.9,
            "change": -0.1,
            "error": 0.01,
            "train_loss": 0.7,
            "train_change": -0.3,
            "gap": 0.2,
        }.items()
    }
    accumulator = EventAccumulator(str(folder), size_guidance={"audio": 0})
    accumulator.Reload()
    assert accumulator.Tags()["audio"] == ["samples/1"]
    (heard,) = accumulator.Audio("samples/1")
    assert (heard.step, heard.sample_rate, heard.length_frames) == (6, 48_000, 4800)
    (tmp_path / "heard.wav").write_bytes(heard.encoded_audio_string)
    assert decode(tmp_path / "heard.wav").mean().item() == pytest.approx(0.2, abs=1e-3)  # both sides of the sound
