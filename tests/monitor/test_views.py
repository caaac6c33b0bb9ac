"""One stream of events, three faces: who gets which file, and when."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from woodshed.console import NobodyReadsError, Terminal
from woodshed.monitor.views import curves_folder, watch
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings
from woodshed.training.events import Finished, Started


@pytest.fixture
def settings(tmp_path):
    def build(output="out", **values):
        required = {"model": "base", "dataset_dir": "tensors", "output_dir": tmp_path / output}
        (tmp_path / output).mkdir(exist_ok=True)
        return resolve(TrainSettings, [Layer("test", required | values)]).settings

    return build


@pytest.fixture
def terminal():
    return Terminal(plain=True)


def journal(folder):
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def steps_drawn(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [item.step for item in accumulator.Scalars("train/loss")]


def test_every_event_reaches_terminal_journal_and_curves(settings, run_of, terminal, tmp_path, capsys):
    events = list(run_of(log_every=1))
    assert watch(iter(events), settings(), terminal) is events[-1]
    assert journal(tmp_path / "out") == [type(event).__name__ for event in events]
    assert steps_drawn(tmp_path / "out" / "runs") == list(range(1, 13))
    assert "The adapter is in" in capsys.readouterr().out


def test_no_file_appears_before_the_run_has_started(settings, run_of, terminal, tmp_path):
    seen = []

    def spied():
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
        yield from run_of()

    watch(spied(), settings(), terminal)
    assert seen == [[]]


def test_a_run_that_never_starts_leaves_nothing(settings, terminal, tmp_path):
    def refused():
        raise ValueError("bad settings")
        yield

    with pytest.raises(ValueError, match="bad settings"):
        watch(refused(), settings(), terminal)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_breaks_closes_its_files_and_says_why(settings, run_of, terminal, tmp_path):
    def broken():
        for event in run_of(log_every=1):
            yield event
            if getattr(event, "step", 0) == 4:
                raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        watch(broken(), settings(), terminal)
    assert journal(tmp_path / "out")[-2:] == ["StepDone", "Failed"]
    assert steps_drawn(tmp_path / "out" / "runs") == [1, 2, 3, 4]


def test_a_stream_that_ends_without_its_last_event_is_a_bug(settings, run_of, terminal):
    events = [event for event in run_of() if not isinstance(event, Finished)]
    with pytest.raises(AssertionError):
        watch(events, settings(), terminal)


def test_curves_go_where_log_dir_says(settings, run_of, terminal, tmp_path):
    watch(run_of(log_every=1), settings(log_dir=tmp_path / "all runs"), terminal)
    assert steps_drawn(tmp_path / "all runs") == list(range(1, 13))
    assert not (tmp_path / "out" / "runs").exists()
    assert (tmp_path / "out" / "events.jsonl").is_file()


def test_runs_that_share_a_log_dir_keep_their_curves_apart(settings, run_of, terminal, tmp_path):
    shared = tmp_path / "all"
    first, second = settings("one", log_dir=shared), settings("two", log_dir=shared)
    watch(run_of(log_every=1), first, terminal)
    watch(run_of(log_every=2, epochs=2), second, terminal)
    assert steps_drawn(shared) == list(range(1, 13))
    assert steps_drawn(shared / "two") == [2, 4, 6]
    watch(run_of(log_every=1, first_step=6), second, terminal)
    assert steps_drawn(shared / "two") == [2, 4, 6, *range(7, 13)]
    assert steps_drawn(shared) == list(range(1, 13))


def test_a_resumed_run_goes_on_drawing_in_its_folder(settings, run_of, terminal, tmp_path):
    one = settings("one", log_dir=tmp_path / "all")
    started = next(iter(run_of(first_step=6)))
    assert isinstance(started, Started)
    watch(run_of(log_every=1), one, terminal)
    assert curves_folder(one, is_new=False) == tmp_path / "all"
    assert curves_folder(one, is_new=True) == tmp_path / "all" / "one"


def test_a_run_that_nobody_reads_any_more_is_asked_to_stop_and_its_records_go_on(
    settings, run_of, terminal, tmp_path, monkeypatch
):
    said, asked = [], []

    def show(_event):
        if not said:
            raise NobodyReadsError

    monkeypatch.setattr(terminal, "lose_reader", said.append)
    events = list(run_of(log_every=1))
    watch(iter(events), settings(), terminal, show=show, ask_to_stop=lambda: asked.append(1))
    assert asked == [1]
    assert said == ["Nobody reads the output any more, so the run stops and saves its state."]
    assert journal(tmp_path / "out") == [type(event).__name__ for event in events]
