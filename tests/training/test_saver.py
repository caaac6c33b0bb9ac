"""Checkpoints are written while training goes on: nothing waits for the disk, nothing is said before it is there."""

import copy
import errno
import json
import os
import threading

import pytest
import torch
from safetensors.torch import load_file

from woodshed.errors import AdapterError, UserError
from woodshed.training import snapshot
from woodshed.training.checkpoint import digest_of_file, list_checkpoints, read_resume_point
from woodshed.training.events import Saved, StepDone
from woodshed.training.loop import take_step, train
from woodshed.training.preflight import check
from woodshed.training.run import load_run
from woodshed.training.snapshot import Snapshot

PATIENCE = 60  # seconds until a test that hangs fails


def steps_of(events):
    return [event.step for event in events if isinstance(event, StepDone)]


def saved_in(events):
    return [(event.kind, event.step) for event in events if isinstance(event, Saved)]


@pytest.fixture
def slow_disk(monkeypatch):
    """Hold back every checkpoint until the event is set."""
    gate = threading.Event()
    true_write = Snapshot.write

    def write(self, folder, **options):
        assert gate.wait(PATIENCE)
        true_write(self, folder, **options)

    monkeypatch.setattr(Snapshot, "write", write)
    return gate


def test_a_slow_disk_holds_no_step_and_nothing_is_said_to_be_saved_before_it_is(settings_for, tmp_path, slow_disk):
    events = []
    for event in train(settings_for(epochs=2, save_every=1)):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 6:  # three steps after the first checkpoint was begun
            assert saved_in(events) == []
            assert list_checkpoints(tmp_path / "out") == []
            slow_disk.set()
        if isinstance(event, Saved):
            assert event.path.is_dir()
    assert saved_in(events) == [("checkpoint", 3), ("checkpoint", 6), ("final", 6)]


def test_a_checkpoint_holds_the_moment_at_which_it_was_begun(settings_for, tmp_path, slow_disk):
    """What is written late is what a run without a slow disk writes."""
    for event in train(settings_for("late", epochs=2, save_every=1)):
        if isinstance(event, StepDone) and event.step == 6:
            slow_disk.set()
    list(train(settings_for("prompt", epochs=2, save_every=1)))
    for name in ("adapter_model.safetensors", "resume/parameters.safetensors", "resume/optimizer.pt"):
        late, prompt = (tmp_path / run / "checkpoint-epoch-1" / name for run in ("late", "prompt"))
        assert late.read_bytes() == prompt.read_bytes()


def test_the_next_checkpoint_waits_for_the_one_before_so_that_one_copy_is_in_memory(settings_for, monkeypatch):
    alive, most = [], []
    true_take, true_write = Snapshot.take.__func__, Snapshot.write

    def take(cls, *arguments, **options):
        alive.append(1)
        most.append(len(alive))
        return true_take(cls, *arguments, **options)

    def write(self, folder, **options):
        true_write(self, folder, **options)
        alive.pop()

    monkeypatch.setattr(Snapshot, "take", classmethod(take))
    monkeypatch.setattr(Snapshot, "write", write)
    list(train(settings_for(epochs=4, save_every=1)))
    assert most == [1, 1, 1, 1]


def test_the_best_and_the_checkpoint_of_one_moment_share_a_copy(settings_for, tmp_path, monkeypatch):
    taken = []
    true_take = Snapshot.take.__func__
    monkeypatch.setattr(Snapshot, "take", classmethod(lambda *a, **o: taken.append(1) or true_take(*a, **o)))
    held_out = {"validation_share": 0.4, "validate_every_n_epochs": 1, "keep_best": True}
    events = list(train(settings_for(epochs=1, save_every=1, **held_out)))
    assert [kind for kind, _ in saved_in(events)] == ["best", "checkpoint", "final"]
    assert len(taken) == 1
    best, row = (read_resume_point(tmp_path / "out" / name) for name in ("best", "checkpoint-epoch-1"))
    assert (best.position, best.validation) == (row.position, row.validation)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), "is sound"),
        (AdapterError("It does not hold what was trained."), "does not hold what was trained"),
    ],
    ids=["full disk", "failed proof"],
)
def test_a_writer_that_fails_ends_the_run_with_the_last_sound_checkpoint(
    settings_for, tmp_path, monkeypatch, error, words
):
    true_write = Snapshot.write

    def write(self, folder, **options):
        if self.position.step > 3:
            raise error
        true_write(self, folder, **options)

    monkeypatch.setattr(Snapshot, "write", write)
    events = []
    with pytest.raises(UserError, match=words):
        events.extend(train(settings_for(epochs=40, save_every=1)))  # keeps what came before the error
    assert saved_in(events) == [("checkpoint", 3)]
    assert steps_of(events)[-1] <= 9  # at the next step, at the latest when the next one is begun
    (sound,) = list_checkpoints(tmp_path / "out")
    assert read_resume_point(sound).position.step == 3
    monkeypatch.undo()
    rest = list(train(settings_for(epochs=3, resume_from="latest")))
    assert steps_of(rest) == [4, 5, 6, 7, 8, 9]


def test_whoever_asks_to_stop_waits_for_what_is_being_written(settings_for, tmp_path, monkeypatch):
    begun = []
    true_write = Snapshot.write
    monkeypatch.setattr(Snapshot, "write", lambda self, *a, **o: begun.append(1) or true_write(self, *a, **o))
    events = list(train(settings_for(epochs=9, save_every=1), should_stop=lambda: bool(begun)))
    newest = list_checkpoints(tmp_path / "out")[-1]
    assert events[-1].adapter == newest
    assert read_resume_point(newest).position.step == steps_of(events)[-1] == events[-1].steps


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, None], ids=["Ctrl-C", "memory", "close"])
def test_however_a_run_ends_the_folder_in_hand_is_written_whole(settings_for, tmp_path, monkeypatch, slow_disk, error):
    true_step = take_step

    def step(run, *arguments, **options):
        if run.position.step == 4 and error is not None:
            slow_disk.set()
            raise error
        return true_step(run, *arguments, **options)

    monkeypatch.setattr("woodshed.training.loop.take_step", step)
    events = train(settings_for(epochs=3, save_every=1))
    if error is None:
        next(event for event in events if isinstance(event, StepDone) and event.step == 4)
        threading.Timer(0.1, slow_disk.set).start()
        events.close()
    else:
        with pytest.raises((KeyboardInterrupt, UserError)):
            list(events)
    steps = [read_resume_point(folder).position.step for folder in list_checkpoints(tmp_path / "out")]
    assert steps == ([3, 4] if error is torch.OutOfMemoryError else [3])  # memory that ran out is rescued too


FAMILIES = {
    "lora": {"bias": "all"},
    "dora": {"adapter_type": "dora"},
    "loha": {"adapter_type": "loha"},
    "oft": {"adapter_type": "oft", "oft_block_size": 4},
    "lokr": {"adapter_type": "lokr", "lokr_weight_decompose": True, "lokr_use_scalar": True, "bias": "all"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_still_adapter_stays_what_it_was_while_the_other_trains_on(settings_for, family):
    run = load_run(check(settings_for(learning_rate=0.02, warmup_steps=0, **FAMILIES[family])))

    def learn():
        for batch in list(run.loader.epoch(1)):
            take_step(run, [*run.prepare([batch])])

    learn()
    still = run.adapter.still()
    then = copy.deepcopy({name: value.detach() for name, value in run.adapter.trainable_parameters().items()})
    deltas = {module: run.adapter.effective_delta(module) for module in run.adapter.modules}
    learn()
    run.loader.close()
    for name, value in still.trainable_parameters().items():
        assert torch.equal(value, then[name])
        assert not torch.equal(value, run.adapter.trainable_parameters()[name]) or not value.any()
    for module, delta in deltas.items():
        assert torch.equal(still.effective_delta(module), delta)
    for name, value in still.biases.parameters.items():
        assert value is not run.adapter.biases.parameters[name]


def test_digests_are_those_of_the_files_and_shared_state_stays_shared(settings_for, tmp_path):
    list(train(settings_for(epochs=1, save_every=1)))
    folder = tmp_path / "out" / "checkpoint-epoch-1"
    digests = json.loads((folder / "resume" / "state.json").read_text())["digests"]
    assert len(digests) == 3
    assert digests == {name: digest_of_file(folder / name) for name in digests}
    assert load_file(folder / "resume" / "parameters.safetensors")
    table = torch.arange(4.0)
    still = snapshot._still({"state": [{"map": table, "rate": 1e-3}, {"map": table}]}, {})
    table.zero_()
    assert still["state"][0]["map"].tolist() == [0, 1, 2, 3]
    assert still["state"][0]["map"] is still["state"][1]["map"]
