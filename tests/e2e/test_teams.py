"""Several processes train one adapter as a single one does, and end together."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("teaming.py")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no fork")


@pytest.fixture(scope="module")
def teams(tmp_path_factory, world, checkpoint_root):
    """The folder of all scenarios, and with which codes the processes of each ended."""
    folder = tmp_path_factory.mktemp("teams")
    return folder, world.script(PROGRAM, checkpoint_root, folder)


def events(folder, kind):
    lines = (folder / "out" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def adapter(folder):
    return load_file(folder / "out" / "final" / "adapter_model.safetensors")


def said(folder, rank=0):
    return (folder / f"said-{rank}").read_text(encoding="utf-8")


def assert_same_adapter(one, other):
    assert one.keys() == other.keys()
    largest = max(value.abs().max().item() for value in one.values())
    for name, value in one.items():
        assert (value - other[name]).abs().max().item() <= 1e-5 * largest, name


@pytest.mark.parametrize("name", ["two", "two to one", "one to two"])
def test_the_same_global_batch_gives_the_same_losses_and_adapter_however_it_is_shared(teams, name):
    folder, ends = teams
    assert set(ends[name]) == {0}
    alone, together = (events(folder / which, "StepDone") for which in ("one", name))
    assert [step["step"] for step in together] == [step["step"] for step in alone] == list(range(1, 7))
    for key in ("loss", "grad_norm", "learning_rate", "audio_seconds"):
        assert [step[key] for step in together] == pytest.approx([step[key] for step in alone], rel=1e-5)
    assert [step["songs"] for step in together] == [4, 3] * 3
    assert_same_adapter(adapter(folder / "one"), adapter(folder / name))


def test_a_process_without_a_batch_takes_part_in_the_step(teams):
    folder, ends = teams
    assert ends["two, uneven"] == [0, 0]
    alone, together = (events(folder / f"{which}, uneven", "StepDone") for which in ("one", "two"))
    assert [step["songs"] for step in together] == [6, 1] * 3
    assert [step["loss"] for step in together] == pytest.approx([step["loss"] for step in alone], rel=1e-5)
    assert_same_adapter(adapter(folder / "one, uneven"), adapter(folder / "two, uneven"))
    assert "1 of 2 processes compute 2 of the 3 batches of a step, the others 1 and wait" in said(
        folder / "two, uneven"
    )


def test_only_the_leader_speaks_and_writes(teams):
    folder, _ = teams
    assert "2 processes compute 1 of the 2 batches of a step each." in said(folder / "two")
    for name in ("two", "one to two", "too many", "not finite", "ctrl-c", "differing"):
        assert said(folder / name, rank=1) == ""
    assert len(events(folder / "two", "Started")) == 1


def test_a_resume_with_another_number_says_that_the_last_bit_may_differ(teams):
    folder, _ = teams
    assert "Steps are computed with processes 1 instead of 2" in said(folder / "two to one")
    assert "Steps are computed with" not in said(folder / "two")


def test_the_leader_measures_while_the_others_wait(teams):
    folder, ends = teams
    assert ends["measured"] == [0, 0]
    assert [event["epoch"] for event in events(folder / "measured", "Validated")] == [1, 2, 3]


def test_more_processes_than_batches_are_refused(teams):
    folder, ends = teams
    assert ends["too many"] == [1, 1, 1]
    assert "too few batches for 3 processes" in said(folder / "too many")
    assert not (folder / "too many" / "out").exists()


def test_ctrl_c_in_all_processes_saves_once(teams):
    folder, ends = teams
    assert ends["ctrl-c"] == [130, 130]
    assert len(events(folder / "ctrl-c", "Saved")) == 1
    assert said(folder / "ctrl-c").count("Stopping after this step") == 1


def test_a_lost_process_ends_the_run_and_the_leader_saves_its_last_good_step(teams):
    folder, ends = teams
    assert ends["lost"] == [1, -9]
    (saved,) = events(folder / "lost", "Saved")
    assert saved["step"] == events(folder / "lost", "StepDone")[-1]["step"] >= 3
    assert "Another of the 2 processes has ended" in said(folder / "lost")
    assert (Path(saved["path"]) / "resume" / "state.json").is_file()


def test_processes_that_differ_stop_before_anything_is_saved(teams):
    folder, ends = teams
    assert ends["differing"] == [1, 1]
    assert "no longer hold the same adapter" in said(folder / "differing")
    assert not list((folder / "differing" / "out").glob("checkpoint-*"))


def test_a_loss_that_is_no_number_is_named_with_songs_of_another_process(teams):
    folder, ends = teams
    assert ends["not finite"] == [1, 1]
    names = re.search(r"The loss of (.*) is not a finite number in step 1", said(folder / "not finite"))
    assert len(names[1].split(", ")) == 2


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29512"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_the_same_command(launcher, tmp_path, world, encoded, checkpoint_root):
    assert encoded.code == 0, encoded.err
    words = [
        *("-m", "woodshed", "train", "--plain", "--checkpoint-dir", checkpoint_root, "--model", "base"),
        *("--dataset-dir", world.folder / "tensors", "--output-dir", tmp_path / "out", "--device", "cpu", "--rank", 4),
        *("--epochs", 2, "--gradient-accumulation", 2, "--num-workers", 0),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        env=world.environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes compute 1 of the 2 batches" in done.stdout
    assert done.stdout.count("The adapter is in") == 1
    assert (tmp_path / "out" / "final" / "adapter_model.safetensors").is_file()
