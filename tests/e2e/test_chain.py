"""From songs to an adapter, through the program's own door: what it says, writes, and repeats."""

import json
import signal
import sys
import time
import tomllib

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.conftest import UNICODE_NAME, Done

STEPS = 40  # 20 epochs of 2
ADAPTER = "adapter_model.safetensors"


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_preprocessing_in_a_pipe_says_what_it_does_in_plain_lines(encoded):
    assert (encoded.code, encoded.err) == (0, "")
    assert "\x1b" not in encoded.out
    lines = encoded.out.splitlines()
    assert lines[0] == "3 songs: 3 to encode; cpu, float32."
    assert lines[-1] == "The dataset is in tensors"
    assert sum(UNICODE_NAME.split()[0] in line for line in lines) == 3  # once for every step


def test_every_song_becomes_a_file_whatever_its_name(world, encoded):
    manifest = json.loads((world.folder / "tensors" / "manifest.json").read_text(encoding="utf-8"))
    files = {path.name for path in (world.folder / "tensors").glob("*.pt")}
    assert set(manifest["samples"]) == files
    assert len(files) == 3
    (name,) = (name for name in files if "音楽" in name)
    metadata = torch.load(world.folder / "tensors" / name, weights_only=True)["metadata"]
    assert metadata["filename"] == f"{UNICODE_NAME}.flac"
    assert "plucked string" in metadata["caption"]
    assert encoded.code == 0


def test_training_in_a_pipe_says_how_far_it_is(trained):
    assert (trained.code, trained.err) == (0, "")
    assert "\x1b" not in trained.out
    assert "\r" not in trained.out
    lines = trained.out.splitlines()
    assert lines[0] == "Training acestep-v15-base on 3 songs"
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == [f"{step}/{STEPS}" for step in range(5, STEPS + 1, 5)]
    assert all(part in steps[3] for part in ("loss ", "lr ", "steps/s", " left"))
    assert lines[-1] == "The adapter is in whole/final"


def test_a_run_leaves_its_settings_its_journal_its_curves_and_its_checkpoints(world, trained):
    folder = world.folder / "whole"
    checkpoints = {f"checkpoint-epoch-{epoch}" for epoch in (5, 10, 15, 20)}
    records = {"run.toml", "events.jsonl", "woodshed.log", "checkpoints.json", "runs"}
    assert {path.name for path in folder.iterdir()} == records | {"final"} | checkpoints
    kinds = [event["event"] for event in events_of(folder)]
    assert (kinds[0], kinds[-1]) == ("Started", "Finished")
    assert (kinds.count("StepDone"), kinds.count("EpochDone"), kinds.count("Saved")) == (STEPS, 20, 5)
    curves = EventAccumulator(str(folder / "runs"), size_guidance={"scalars": 0})
    curves.Reload()
    assert [point.step for point in curves.Scalars("train/loss")] == list(range(5, STEPS + 1, 5))
    layers = [tag for tag in curves.Tags()["scalars"] if tag.startswith("gradients/")]
    assert len(layers) == 32  # 4 layers with 8 projections each
    assert [point.step for point in curves.Scalars(layers[0])] == [20, 40]
    assert trained.code == 0


def test_checkpoints_and_the_final_adapter_are_live_and_differ(world, trained):
    names = ("checkpoint-epoch-5", "checkpoint-epoch-20", "final")
    early, late, final = (load_file(world.folder / "whole" / name / ADAPTER) for name in names)
    assert all(late[name].equal(final[name]) for name in final)
    assert all(not early[name].equal(late[name]) for name in final)
    assert all(tensor.abs().max() > 0 for tensor in final.values())
    assert trained.code == 0


def test_the_run_file_repeats_the_run_to_the_last_byte(world, trained, run_here):
    values = tomllib.loads((world.folder / "whole" / "run.toml").read_text(encoding="utf-8"))
    assert (values["rank"], values["epochs"], values["learning_rate"]) == (4, 20, 1e-3)
    again = run_here("train", "--config", "whole/run.toml", "--output-dir", "again", "--yes")
    assert (again.code, again.err, trained.code) == (0, "", 0)
    whole, repeated = (world.folder / name / "final" / ADAPTER for name in ("whole", "again"))
    assert whole.read_bytes() == repeated.read_bytes()


@pytest.fixture(scope="module")
def interrupted(world, encoded):
    """A run that got Ctrl-C when its journal held two steps."""
    assert encoded.code == 0
    process = world.start(*world.train_words("cut"))
    journal = world.folder / "cut" / "events.jsonl"
    deadline = time.monotonic() + 200
    while not (journal.is_file() and journal.read_bytes().count(b'"StepDone"') >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    return Done(process.returncode, out, err)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C in another way")
def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(world, interrupted):
    assert interrupted.code == 130
    assert interrupted.err.startswith("Stopping after this step; the state will be saved.")
    assert "Traceback" not in interrupted.err
    (saved,) = (event for event in events_of(world.folder / "cut") if event["event"] == "Saved")
    assert 2 <= saved["step"] < STEPS
    assert f"--resume-from {saved['path']}" in interrupted.out
    assert (world.folder / saved["path"] / ADAPTER).is_file()
    assert not (world.folder / "cut" / "final").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C in another way")
def test_a_resumed_run_ends_in_the_bytes_of_an_undisturbed_one(world, trained, interrupted, run_here):
    assert (trained.code, interrupted.code) == (0, 130)
    resumed = run_here(*world.train_words("cut", "--resume-from", "latest"))
    assert (resumed.code, resumed.err) == (0, "")
    assert "Resuming at epoch" in resumed.out
    whole, cut = (world.folder / name for name in ("whole", "cut"))
    assert (whole / "final" / ADAPTER).read_bytes() == (cut / "final" / ADAPTER).read_bytes()
    assert (whole / "checkpoint-epoch-20" / ADAPTER).read_bytes() == (
        cut / "checkpoint-epoch-20" / ADAPTER
    ).read_bytes()

    def losses(folder):
        return {event["step"]: event["loss"] for event in events_of(folder) if event["event"] == "StepDone"}

    assert losses(whole) == losses(cut)
    assert len(losses(cut)) == STEPS
