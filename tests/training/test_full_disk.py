"""A disk that takes nothing any more ends the run, and the last checkpoint is sound."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from woodshed import storage
from woodshed.console import Terminal
from woodshed.errors import UserError
from woodshed.monitor.journal import Journal
from woodshed.monitor.views import watch
from woodshed.training.checkpoint import list_checkpoints, read_resume_point
from woodshed.training.events import StepDone
from woodshed.training.loop import train


def refuse_after(monkeypatch, flushes, number):
    """Let the disk fail with this error after so many flushes."""
    true_flush, calls = storage._flush, iter(range(10**6))

    def flush(path):
        if next(calls) >= flushes:
            raise OSError(number, os.strerror(number), str(path))
        true_flush(path)

    monkeypatch.setattr(storage, "_flush", flush)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE, errno.EROFS], ids=["full", "vanished", "read-only"])
def test_the_run_stops_and_says_what_is_sound(settings_for, tmp_path, monkeypatch, number):
    refuse_after(monkeypatch, 11, number)  # run.toml, five files of the first checkpoint, the pointers, four of five
    with pytest.raises(UserError) as caught:
        [*train(settings_for(epochs=4, save_every=1))]
    newest = tmp_path / "out" / "checkpoint-epoch-1"
    assert os.strerror(number) in str(caught.value)
    assert f"{newest}, is sound" in str(caught.value)
    assert list_checkpoints(tmp_path / "out") == [newest]
    monkeypatch.undo()
    steps = [event.step for event in train(settings_for(epochs=4, resume_from="latest")) if isinstance(event, StepDone)]
    assert steps == list(range(4, 13))


def test_without_any_checkpoint_none_is_promised(settings_for, monkeypatch):
    refuse_after(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(UserError, match="No checkpoint can be read there"):
        [*train(settings_for(epochs=2, save_every=1))]


def test_a_song_that_vanishes_ends_the_run_after_its_last_good_step_is_saved(settings_for, dataset_dir, tmp_path):
    def take_away():
        shutil.rmtree(dataset_dir, ignore_errors=True)
        return False

    settings = settings_for(epochs=3, keep_in_memory="no")
    events = train(settings, should_stop=take_away)
    with pytest.raises(UserError):
        list(events)
    (saved,) = list_checkpoints(tmp_path / "out")
    assert read_resume_point(saved).position.step >= 1


def test_records_that_cannot_be_written_stop_the_run_with_its_state_saved(settings_for, tmp_path, monkeypatch, capsys):
    asked = []

    def write(self, _values):
        if self._path.stat().st_size > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        true_write(self, _values)

    true_write = Journal._write
    monkeypatch.setattr(Journal, "_write", write)
    settings = settings_for(epochs=50)
    with pytest.raises(UserError, match=r"events\.jsonl"):
        watch(
            train(settings, should_stop=lambda: bool(asked)),
            settings,
            Terminal(plain=True),
            ask_to_stop=lambda: asked.append(True),
        )
    assert len(asked) == 1
    (saved,) = list_checkpoints(tmp_path / "out")
    assert 2 <= read_resume_point(saved).position.step < 50
    assert "saved" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a disk")
def test_a_disk_that_is_really_full(settings_for, tmp_path):
    (tmp_path / "out").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(tmp_path / "out")], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(UserError, match="No space left on device") as caught:
            [*train(settings_for(epochs=60, save_every=1))]
        assert "is sound" in str(caught.value)
        for folder in list_checkpoints(tmp_path / "out"):
            read_resume_point(folder)
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)
