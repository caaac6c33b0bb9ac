"""Checkpoints: found, checked, matched tensor by tensor, or refused with what differs."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch

from woodshed import storage
from woodshed.errors import UserError
from woodshed.training import checkpoint
from woodshed.training.checkpoint import (
    Position,
    checkpoint_folder,
    find_resume_point,
    list_checkpoints,
    read_resume_point,
)
from woodshed.training.events import Notice, StepDone
from woodshed.training.loop import train
from woodshed.training.preflight import check
from woodshed.training.run import load_run


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory, settings_in, songs_dir):
    """A run of two epochs with a checkpoint after each, to read only."""
    folder = tmp_path_factory.mktemp("trained")
    for _ in train(settings_in(folder, dataset_dir=songs_dir, epochs=2, save_every=1)):
        pass
    return folder / "out"


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of that run that a test may change."""
    return shutil.copytree(trained_once, tmp_path / "out")


def is_step(event):
    return isinstance(event, StepDone)


def problems_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.problems


def test_a_checkpoint_holds_the_playable_adapter_and_what_a_resume_needs(trained):
    folder = trained / "checkpoint-epoch-1"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "resume/parameters.safetensors",
        "resume/optimizer.pt",
        "resume/state.json",
    }
    state = json.loads((folder / "resume" / "state.json").read_text())
    assert state["position"]["epoch"] == 2
    assert state["position"]["step"] == 3
    assert state["model"] == "acestep-v15-base"
    assert sorted(state["digests"]) == sorted(name for name in names if not name.endswith(".json"))


@pytest.mark.parametrize("given", ["latest", "folder", "file", "state"])
def test_resume_from_takes_a_folder_a_file_in_it_or_latest(settings_for, trained, given):
    newest = trained / "checkpoint-epoch-2"
    path = {
        "latest": "latest",
        "folder": newest,
        "file": newest / "adapter_model.safetensors",
        "state": newest / "resume" / "state.json",
    }[given]
    assert find_resume_point(settings_for(epochs=3, resume_from=path)).folder == newest


def test_every_tensor_and_the_optimizer_come_back(settings_for, trained):
    run = load_run(check(settings_for(epochs=3, resume_from="latest")))
    stored = safetensors.torch.load_file(trained / "checkpoint-epoch-2" / "resume" / "parameters.safetensors")
    now = run.adapter.trainable_parameters()
    assert stored.keys() == now.keys()
    assert all(torch.equal(stored[name], now[name]) for name in stored)
    assert all(state["step"] == 6 for state in run.optimizer.state.values())
    assert (run.position.epoch, run.position.step) == (3, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 8}, ("rank 4", "asks for 8")),
        ({"attention_type": "self"}, ("attention_type both", "asks for self")),
        ({"target_modules": "q_proj"}, ("target_modules",)),
        ({"optimizer_type": "adafactor"}, ("optimizer_type adamw", "asks for adafactor")),
        ({"bias": "all"}, ("bias none", "asks for all")),
        ({"adapter_type": "lokr"}, ("adapter_type lora", "asks for lokr")),
        ({"epochs": 2}, ("already done 2 epochs", "--epochs 12")),
    ],
)
def test_a_resume_that_does_not_fit_stops_and_says_what_differs(settings_for, trained, changes, words):
    found = "\n".join(problems_of(check, settings_for(**{"epochs": 3, "resume_from": "latest"} | changes)))
    for word in words:
        assert word in found
    assert str(trained / "checkpoint-epoch-2") in found


@pytest.mark.usefixtures("trained")
def test_a_resume_on_another_model_stops(settings_for):
    found = problems_of(check, settings_for(epochs=3, resume_from="latest", model="acestep-v15-turbo"))
    assert any("was trained on acestep-v15-base; this run asks for acestep-v15-turbo" in line for line in found)


def test_a_run_that_stopped_between_its_last_checkpoint_and_its_end_comes_to_it(settings_for, trained):
    whole = (trained / "final" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(trained / "final")
    assert not any(map(is_step, train(settings_for(epochs=2, save_every=1, resume_from="latest"))))
    assert (trained / "final" / "adapter_model.safetensors").read_bytes() == whole


def test_steps_that_are_computed_otherwise_than_before_are_named(settings_for, trained):
    def said(**changes):
        events = train(settings_for(epochs=3, resume_from=trained / "checkpoint-epoch-2", **changes))
        return [event.text for event in events if isinstance(event, Notice) and "Steps are computed" in event.text]

    assert said(output="same") == []
    assert said(output="other", gradient_checkpointing=False) == [
        "Steps are computed with recompute none instead of all: the same up to rounding, not to the last bit."
    ]


def test_changes_that_can_continue_are_named(settings_for, trained):
    said = check(settings_for(epochs=5, resume_from="latest", learning_rate=5e-4, keep_last=1)).notices
    assert "Resuming with learning_rate 0.0005 instead of 0.001." in said
    assert any("for 5 epochs instead of 2" in line for line in said)
    assert not any("keep_last" in line for line in said)
    assert trained.exists()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


TENSOR_FILES = ["resume/parameters.safetensors", "resume/optimizer.pt", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_a_damaged_file_is_recognised_and_the_newest_sound_checkpoint_offered(settings_for, trained, name):
    flip_a_bit(trained / "checkpoint-epoch-2" / name)
    (found,) = problems_of(check, settings_for(epochs=3, resume_from="latest"))
    assert found == (
        f"{trained / 'checkpoint-epoch-2'} is damaged: {name} changed since it was written. The newest sound "
        f"checkpoint beside it, after step 3, is {trained / 'checkpoint-epoch-1'}: give that to --resume-from."
    )
    steps = [
        event.step
        for event in train(settings_for(epochs=3, resume_from=trained / "checkpoint-epoch-1"))
        if is_step(event)
    ]
    assert steps == [4, 5, 6, 7, 8, 9]
    assert (trained / "checkpoint-epoch-2-superseded-1").is_dir()


def test_where_every_checkpoint_is_damaged_none_is_offered(settings_for, trained):
    for number in (1, 2):
        flip_a_bit(trained / f"checkpoint-epoch-{number}" / "resume" / "optimizer.pt")
    (found,) = problems_of(check, settings_for(epochs=3, resume_from="latest"))
    assert found.endswith("There is no sound checkpoint beside it.")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 2}'])
def test_a_damaged_state_is_recognised(settings_for, trained, text):
    (trained / "checkpoint-epoch-2" / "resume" / "state.json").write_text(text)
    found = problems_of(check, settings_for(epochs=3, resume_from="latest"))
    assert "checkpoint-epoch-2" in found[0]
    assert f"is {trained / 'checkpoint-epoch-1'}: give that" in found[0]


def test_a_changed_number_in_the_state_is_damage_another_layout_is_not(settings_for, trained):
    path = trained / "checkpoint-epoch-2" / "resume" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state))
    assert find_resume_point(settings_for(epochs=3, resume_from="latest")).position.step == 6
    state["position"]["step"] = 7
    path.write_text(json.dumps(state))
    assert "damaged: resume/state.json changed" in problems_of(check, settings_for(epochs=3, resume_from="latest"))[0]


def test_all_checkpoints_of_a_run_bear_its_name_and_those_of_another_run_another(settings_for, trained, tmp_path):
    for _ in train(settings_for(epochs=3, save_every=1, resume_from="latest")):
        pass
    for _ in train(settings_for("other", epochs=1, save_every=1)):
        pass
    names = [read_resume_point(folder).run for folder in list_checkpoints(trained)]
    assert len(names) == 3
    assert len(set(names)) == 1
    assert read_resume_point(tmp_path / "other" / "checkpoint-epoch-1").run not in (names[0], "")


def test_a_copy_elsewhere_continues_its_own_run_in_its_folder(settings_for, trained, tmp_path):
    backup = tmp_path / "backup" / "checkpoint-epoch-1"
    shutil.copytree(trained / "checkpoint-epoch-1", backup)
    point = find_resume_point(settings_for(epochs=3, resume_from=backup))
    assert (point.folder, point.position.step) == (backup, 3)


def pointers_in(folder):
    return json.loads((folder / "checkpoints.json").read_text(encoding="utf-8"))


def test_a_small_file_names_the_newest_and_the_best_checkpoint(settings_for, tmp_path):
    folder = tmp_path / "out"
    for _ in train(settings_for(epochs=2, save_every=1, keep_last=1)):
        pass
    run = read_resume_point(folder / "checkpoint-epoch-2").run
    assert pointers_in(folder) == {"run": run, "latest": "checkpoint-epoch-2", "best": None}
    held_out = {"validation_share": 0.4, "validate_every_n_epochs": 1, "keep_best": True}
    for _ in train(settings_for("measured", epochs=2, **held_out)):
        pass
    named = pointers_in(tmp_path / "measured")
    assert (named["latest"], named["best"]) == (None, "best")
    best = find_resume_point(settings_for("measured", epochs=9, resume_from="best", **held_out))
    assert best.folder == tmp_path / "measured" / named["best"]


def test_a_deleted_checkpoint_is_never_half_there(settings_for, monkeypatch, tmp_path):
    """Killed while it deletes: the old checkpoint has lost its name before it loses its first file."""

    def killed(folder, **_):
        seen.append(folder.name)
        if folder.exists():
            raise KeyboardInterrupt

    seen = []
    monkeypatch.setattr(storage.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        [*train(settings_for(epochs=3, save_every=1, keep_last=1))]
    assert seen[-1] == ".checkpoint-epoch-1.dropped"
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-epoch-2"]
    monkeypatch.undo()
    for _ in train(settings_for(epochs=3, resume_from="latest")):
        pass
    assert not list((tmp_path / "out").glob(".*"))


def write_state(path, state):
    """Write a state as somebody would who knows how its digest is made."""
    del state["digest"]
    path.write_text(json.dumps(state | {"digest": checkpoint.digest_of(state)}))


def test_a_missing_tensor_stops_the_resume(settings_for, trained):
    path = trained / "checkpoint-epoch-2" / "resume" / "parameters.safetensors"
    tensors = safetensors.torch.load_file(path)
    missing = next(iter(tensors))
    del tensors[missing]
    safetensors.torch.save_file(tensors, path)
    state_path = path.with_name("state.json")
    state = json.loads(state_path.read_text())
    del state["digests"]["resume/parameters.safetensors"]
    write_state(state_path, state)
    with pytest.raises(UserError, match=re.escape(missing)):
        load_run(check(settings_for(epochs=3, resume_from="latest")))


def test_the_optimizer_file_is_never_executed(settings_for, trained, tmp_path):
    canary = tmp_path / "canary"

    class Malice:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    path = trained / "checkpoint-epoch-2" / "resume" / "optimizer.pt"
    torch.save({"state": Malice()}, path)
    state_path = path.with_name("state.json")
    state = json.loads(state_path.read_text())
    del state["digests"]["resume/optimizer.pt"]
    write_state(state_path, state)
    with pytest.raises(UserError):
        load_run(check(settings_for(epochs=3, resume_from="latest")))
    assert not canary.exists()


def test_the_newest_checkpoint_counts_whole_epochs_after_interrupted_ones(tmp_path):
    for name in ("epoch-2", "epoch-10", "epoch-9", "epoch-10-step-31", "epoch-11-step-35"):
        state = tmp_path / f"checkpoint-{name}" / "resume" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
    (tmp_path / "checkpoint-epoch-99").mkdir()  # no state: not a checkpoint
    names = [path.name.removeprefix("checkpoint-") for path in list_checkpoints(tmp_path)]
    assert names == ["epoch-2", "epoch-9", "epoch-10-step-31", "epoch-10", "epoch-11-step-35"]


def test_folder_names_say_the_epoch_and_for_interrupted_ones_the_step(tmp_path):
    position = Position(epoch=3, step=17)
    assert checkpoint_folder(tmp_path, position, is_epoch_complete=True).name == "checkpoint-epoch-3"
    assert checkpoint_folder(tmp_path, position, is_epoch_complete=False).name == "checkpoint-epoch-3-step-17"


@pytest.mark.parametrize(
    ("path", "words"),
    [("latest", "no checkpoint in"), ("nowhere", "does not exist"), ("tensors", "not a Woodshed checkpoint")],
)
def test_a_resume_from_nothing_is_a_clear_error(settings_for, tmp_path, path, words):
    given = path if path == "latest" else tmp_path / path
    assert words in problems_of(check, settings_for(resume_from=given))[0]


def test_a_run_that_stopped_before_its_first_checkpoint_says_how_to_start_anew(settings_for, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.toml").write_text("")
    assert "delete that folder to start anew" in problems_of(check, settings_for(resume_from="latest"))[0]


def test_a_whole_run_is_answered_with_its_newest_checkpoint(settings_for, trained):
    found = problems_of(check, settings_for("other", epochs=3, resume_from=trained))
    assert f"Its newest checkpoint is {trained / 'checkpoint-epoch-2'}" in found[0]


def test_a_resume_into_another_runs_folder_is_refused(settings_for, trained):
    for _ in train(settings_for("other")):
        pass
    found = problems_of(check, settings_for("other", epochs=3, resume_from=trained / "checkpoint-epoch-2"))
    assert "holds another run" in found[0]


def test_going_back_sets_the_newer_checkpoints_aside(settings_for, train_until, tmp_path):
    folder = tmp_path / "out"
    for _ in train(settings_for(epochs=4, save_every=1)):
        pass
    back = settings_for(epochs=6, save_every=1, keep_last=2, resume_from=folder / "checkpoint-epoch-2")
    events = train_until(back, lambda event: isinstance(event, StepDone) and event.step == 9)  # the third epoch's last
    assert events[-1].adapter == folder / "checkpoint-epoch-3"
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-epoch-2", "checkpoint-epoch-3"]
    aside = {"checkpoint-epoch-3-superseded-1", "checkpoint-epoch-4-superseded-1"}
    assert {path.name for path in folder.glob("*superseded*")} == aside
    assert sum(isinstance(event, Notice) and "Set aside" in event.text for event in events) == 2
    assert find_resume_point(settings_for(epochs=6, resume_from="latest")).folder == folder / "checkpoint-epoch-3"
    assert find_resume_point(settings_for(epochs=6, resume_from=folder / "checkpoint-epoch-4-superseded-1"))


def test_going_back_twice_loses_nothing(trained, settings_for):
    for number in (1, 2):
        for _ in train(settings_for(epochs=2, save_every=1, resume_from=trained / "checkpoint-epoch-1")):
            pass
        assert (trained / f"checkpoint-epoch-2-superseded-{number}" / "resume" / "state.json").is_file()
    assert list_checkpoints(trained)[-1].name == "checkpoint-epoch-2"


@pytest.mark.usefixtures("trained")
def test_another_number_of_songs_is_named_between_epochs_and_refused_within_one(settings_for, train_until, dataset_dir):
    train_until(settings_for("other"), is_step)
    (dataset_dir / "e.pt").unlink()
    said = check(settings_for(epochs=3, resume_from="latest")).notices
    assert "Resuming with 4 songs instead of 5." in said
    (problem,) = problems_of(check, settings_for("other", resume_from="latest"))
    assert "an epoch over 5 songs; finish that epoch with the same songs instead of 4" in problem


def test_a_mid_epoch_resume_needs_the_same_batches(settings_for, train_until, tmp_path):
    train_until(settings_for(), is_step)
    found = problems_of(check, settings_for(resume_from="latest", batch_size=2, seed=1))
    assert any("in the middle of an epoch with batch_size 1" in line for line in found)
    assert any("with seed 42" in line for line in found)
    assert (tmp_path / "out" / "checkpoint-epoch-1-step-1").is_dir()


def test_targets_in_another_order_are_the_same_targets(settings_for):
    for _ in train(settings_for(epochs=1, save_every=1, target_modules="q_proj k_proj")):
        pass
    for _ in train(settings_for(epochs=2, resume_from="latest", target_modules="k_proj, q_proj")):
        pass
