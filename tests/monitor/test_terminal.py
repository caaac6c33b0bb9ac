"""A run as people see it: plain lines in a pipe, a block that redraws itself on a terminal."""

import dataclasses
import math
import re

import pytest

from woodshed.console import Terminal
from woodshed.monitor.terminal import TrainingView
from woodshed.training.events import EpochDone, Finished, Notice, SampleMade, Saved, Started, StepDone, Validated


def show(terminal, events):
    with TrainingView(terminal) as view:
        for event in events:
            view(event)


@pytest.fixture
def plain(capsys):
    """Show events in a pipe and return its lines."""

    def call(events):
        show(Terminal(), events)
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "\x1b" not in captured.out
        assert "\r" not in captured.out
        return captured.out.splitlines()

    return call


def test_a_pipe_gets_the_run_as_plain_lines(plain, run_of, tmp_path):
    lines = plain(run_of(epochs=2))
    assert lines[:5] == [
        "Training acestep-v15-base on 6 songs",
        "  device   cuda:0 (NVIDIA H200), bf16",
        "  adapter  192 modules, 22,020,096 trainable parameters",
        "  length   2 epochs x 3 steps = 6 optimizer steps",
        f"  output   {tmp_path / 'out'}",
    ]
    assert lines[-4:] == [
        f"saved {tmp_path / 'out' / 'final'}",
        "6 steps in 3 s, peak memory 3.00 GiB.",
        "The mean loss of an epoch went from 100.0000 to 50.0000.",
        f"The adapter is in {tmp_path / 'out' / 'final'}",
    ]


def test_a_logged_step_tells_progress_loss_rate_speed_and_time_left(plain, run_of):
    (line,) = (line for line in plain(run_of()) if line.startswith("step 2/"))
    smoothed = (10 * 0.95 + 5) / 1.95
    assert line == (
        f"step 2/12  epoch 1  loss 5.0000 (smoothed {smoothed:.4f})  lr 2.00e-04  norm 0.200  2.00 steps/s  5 s left"
    )


def test_the_share_of_time_in_which_songs_were_waited_for_is_told_at_the_end(plain, run_of):
    events = [dataclasses.replace(one, waited=0.005) if isinstance(one, StepDone) else one for one in run_of()]
    assert "1.0% of the steps' time was spent waiting for songs." in plain(events)
    assert not [line for line in plain(run_of()) if "waiting" in line]


@pytest.mark.parametrize(("every", "steps"), [(1, range(1, 13)), (5, [5, 10]), (100, [])])
def test_steps_are_shown_as_often_as_the_run_logs(plain, run_of, every, steps):
    lines = plain(run_of(log_every=every))
    assert [int(line.split("/")[0].split()[1]) for line in lines if re.match(r"step \d", line)] == list(steps)


def test_every_epoch_is_a_line(plain, run_of):
    lines = [line for line in plain(run_of()) if line.startswith("epoch ")]
    assert lines[1] == "epoch 2/4 done in 1.5 s, mean loss 50.0000"
    assert len(lines) == 4


def test_notices_and_saves_are_said(plain, run_of, tmp_path):
    started, *_ = run_of()
    lines = plain([started, Notice("Watch [out]."), Saved(tmp_path / "checkpoint-epoch-1", "checkpoint", 1, 3)])
    assert lines[-2:] == ["Watch [out].", f"saved {tmp_path / 'checkpoint-epoch-1'}"]


def test_a_resumed_run_counts_from_where_it_stands(plain, run_of):
    lines = plain(run_of(first_step=6))
    assert "Resuming at epoch 3, after step 6." in lines
    assert "6 steps in 3 s, 12 in all, peak memory 3.00 GiB." in lines
    (line,) = (line for line in lines if line.startswith("step 8/12"))
    assert line.endswith("2.00 steps/s  2 s left")
    assert "(smoothed 1." in line  # not 10 / 1, which an earlier process saw


def test_an_interrupted_run_does_not_call_its_checkpoint_the_adapter(plain, run_of, tmp_path):
    started, *_ = run_of()
    finished = Finished(tmp_path / "checkpoint-epoch-1", 1, 2, 1.0, None, was_interrupted=True)
    lines = plain([started, finished])
    assert lines[-1] == "2 steps in 1 s."


def test_a_step_that_overflowed_spoils_neither_smoothed_loss_nor_time_left(plain, run_of):
    events = [
        dataclasses.replace(event, loss=math.inf, grad_norm=math.inf)
        if isinstance(event, StepDone) and event.step == 3
        else event
        for event in run_of()
    ]
    (line,) = (line for line in plain(events) if line.startswith("step 4/12"))
    assert "smoothed inf" not in line
    assert "nan" not in line
    assert line.endswith("2.00 steps/s  4 s left")


def until(events, step):
    """The events up to and with a step, so that the live block still stands."""
    for event in events:
        yield event
        if isinstance(event, StepDone) and event.step == step:
            return


def watch_live(screen, events):
    """Show events on a screen; return what stands there before the view ends, and after."""
    with TrainingView(screen.terminal) as view:
        for event in events:
            view(event)
        if view._block is not None:
            view._block._live.refresh()
        during = screen.lines()
    return during, screen.lines()


@pytest.mark.parametrize("width", [60, 100])
def test_the_live_block_shows_everything_and_never_wraps(screen_of, run_of, width):
    during, after = watch_live(screen_of(width), until(run_of(epochs=100), 200))
    assert len(during) == len(after) + 3  # nothing spilled into further lines
    bar, numbers, curve = during[-3:]
    assert bar.startswith("epoch 67/100 ━")
    assert bar.endswith("━ step 200/300")
    assert len(bar) == width
    assert re.fullmatch(r"loss 0\.\d{4}  50 s left  2\.00 steps/s  lr 2\.0e-02", numbers)
    assert re.fullmatch(r"loss so far [▁▂▃▄▅▆▇█]{40}", curve)
    assert curve.removeprefix("loss so far ")[0] == "█"
    assert curve[-1] == "▁"
    assert all(len(line) <= width for line in during)


@pytest.mark.parametrize("width", [60, 100])
def test_the_lines_before_the_block_fit_too(screen_of, width):
    big = Started("out", "acestep-v15-xl-turbo", "cuda:0 (NVIDIA GeForce RTX 4090)", "bf16", 10_000, 384, 188_743_680,
                  100, 2500, 250_000, 1, 0)  # fmt: skip
    step = StepDone(1, 1, 1.0, 1e-4, 1.0, 4, 400.0, 30.0, is_logged=True)
    during, _ = watch_live(screen_of(width), [big, step, dataclasses.replace(step, step=2, loss=0.9)])
    assert len(during) == 5 + 3
    assert [line.split()[0] for line in during] == (
        ["Training", "device", "adapter", "length", "output", "epoch", "loss", "loss"]
    )
    assert during[-2].startswith("loss 0.9487  2083 h 19 min left  30.0 s/step  lr 1.0e-04")


def test_a_live_run_keeps_its_saves_on_the_screen_and_takes_the_block_away(screen_of, run_of, tmp_path):
    _, after = watch_live(screen_of(200), run_of())
    assert [line for line in after if "━" in line or "loss so far" in line] == []
    assert after[-4:] == [
        f"saved {tmp_path / 'out' / 'final'}",
        "12 steps in 6 s, peak memory 3.00 GiB.",
        "The mean loss of an epoch went from 100.0000 to 25.0000.",
        f"The adapter is in {tmp_path / 'out' / 'final'}",
    ]
    assert not [line for line in after if line.startswith("epoch ")]


def test_the_block_goes_when_the_run_breaks(screen_of, run_of):
    screen = screen_of(60)

    def broken():
        yield from until(run_of(), 4)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        show(screen.terminal, broken())
    assert not [line for line in screen.lines() if "━" in line]
    assert screen.file.getvalue().count("\x1b[?25l") == screen.file.getvalue().count("\x1b[?25h") == 1  # the cursor


def test_a_long_notice_breaks_between_words(screen_of, run_of):
    started, *_ = run_of()
    sentence = "The warm-up of 100 steps is not shorter than the whole run, so that the rate never reaches its peak."
    _, after = watch_live(screen_of(60), [started, Notice(sentence)])
    assert " ".join(after[-2:]) == sentence


def test_a_console_without_unicode_gets_no_curve(screen_of, run_of, monkeypatch):
    screen = screen_of(60)
    monkeypatch.setattr(type(screen.terminal.out), "encoding", property(lambda _: "cp1252"))
    during, _ = watch_live(screen, until(run_of(), 6))
    assert "loss so far" not in "".join(during)
    assert during[-1].startswith("loss ")


def test_epochs_of_a_live_run_are_not_lines(screen_of, run_of):
    started, *_ = run_of()
    _, after = watch_live(screen_of(60), [started, EpochDone(1, 2.0, 3.0)])
    assert not [line for line in after if line.startswith("epoch")]


def test_validation_and_samples_are_lines(plain, tmp_path):
    found = Validated(2, 6, 3, 0.9, -0.1, 0.01, 0.7, -0.3, 0.02, 0.2, True, 1.5)
    sample = SampleMade(tmp_path / "a.wav", 2, 6, 1, "a", 48_000, 30.0)
    first, *_ = lines = plain([found, sample])
    assert first.startswith("epoch 2: held-out loss 0.9000 (best), -0.1000 +- 0.0100 against the base model;")
    assert "training songs -0.3000, gap +0.2000 (1.5 s)" in "".join([first, *lines])
    assert "".join(lines).endswith(f"sample {tmp_path / 'a.wav'}")
