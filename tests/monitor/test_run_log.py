"""woodshed.log: versions, hardware, settings with their origins, and the history of a run."""

import re

import pytest

from woodshed import __version__
from woodshed.console import Terminal
from woodshed.monitor.run_log import RunLog
from woodshed.monitor.views import watch
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import EpochDone, Notice


@pytest.fixture
def resolved(tmp_path):
    (tmp_path / "out").mkdir()
    required = {"model": "base", "dataset_dir": "tensors", "output_dir": tmp_path / "out"}
    return resolve(TrainSettings, [Layer("test", required), Layer("preset quick_test", {"rank": 16})])


def log_of(tmp_path):
    lines = (tmp_path / "out" / "woodshed.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ .", line) for line in lines)
    return [line[21:] for line in lines]


def test_a_start_tells_versions_machine_and_every_setting_with_its_origin(resolved, run_of, tmp_path):
    watch(run_of(), resolved.settings, Terminal(plain=True), origins=resolved.origins)
    lines = log_of(tmp_path)
    assert any(line.startswith(f"woodshed {__version__}, Python 3.") and ", torch 2." in line for line in lines)
    assert any("processors" in line and "computing on" in line for line in lines)
    assert "setting rank = 16 (preset quick_test)" in lines
    assert "setting alpha = 32.0 (2 x rank)" in lines
    told = {line.split()[1] for line in lines if line.startswith("setting ")}
    assert told == set(TrainSettings.model_fields)


def test_a_resume_is_added_to_the_history(resolved, run_of, tmp_path):
    for first_step in (0, 6):
        watch(run_of(first_step=first_step), resolved.settings, Terminal(plain=True), origins=resolved.origins)
    starts = [line for line in log_of(tmp_path) if line.startswith("run ")]
    assert len(starts) == 2
    assert " starts in " in starts[0]
    assert " resumes at epoch " in starts[1]
    assert "after step 6" in starts[1]


def test_what_happens_is_a_line_each_but_steps(resolved, run_of, tmp_path):
    events = list(run_of())
    watch(iter(events), resolved.settings, Terminal(plain=True), origins=resolved.origins)
    lines = log_of(tmp_path)
    epochs = [line for line in lines if re.match(r"epoch \d+ done", line)]
    assert len(epochs) == sum(isinstance(event, EpochDone) for event in events)
    assert re.match(r"finished after 12 steps", lines[-1])


def test_what_ends_a_run_is_told_and_nothing_commands_a_terminal(resolved, tmp_path):
    log, error = RunLog(resolved.settings, resolved.origins), ZeroDivisionError("no")
    log.__enter__()
    log(Notice("a\x1b[2Jname\nof a song"))
    log.__exit__(type(error), error, None)
    assert log_of(tmp_path) == ["a?[2Jname of a song", "ended by ZeroDivisionError: no"]


def test_secrets_of_the_environment_stay_out(resolved, run_of, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_secret_of_mine")
    watch(run_of(), resolved.settings, Terminal(plain=True), origins=resolved.origins)
    assert "secret_of_mine" not in (tmp_path / "out" / "woodshed.log").read_text(encoding="utf-8")
