"""Songs are made ahead, across epochs; a step that runs out of memory is taken again without the songs' part."""

import pytest
import torch

from woodshed.data import batches
from woodshed.training import loop
from woodshed.training.courier import Courier
from woodshed.training.engine import Engine
from woodshed.training.events import EpochDone, Notice, StepDone
from woodshed.training.loop import train
from woodshed.training.out_of_memory import again_with_room
from woodshed.training.preflight import check
from woodshed.training.resume_point import Position
from woodshed.training.run import load_run


def steps_of(events):
    return [(event.loss, event.grad_norm) for event in events if isinstance(event, StepDone)]


def equal(one, other):
    return one.names == other.names and all(
        torch.equal(value, there.tensors()[name])
        for here, there in zip(one.parts, other.parts, strict=True)
        for name, value in here.tensors().items()
    )


def test_what_is_to_come_is_every_epoch_from_where_the_run_stands(settings_for):
    run = load_run(check(settings_for(epochs=3)))
    run.position = Position(epoch=2, steps_in_epoch=1)
    expected = [*run.prepare(run.loader.epoch(2, start_batch=2), 2), *run.prepare(run.loader.epoch(3), 3)]
    coming = run.songs_to_come()
    run.position.epoch = 9  # what happens meanwhile does not move it
    found = [*coming]
    assert len(found) == 3 + 5
    assert all(map(equal, found, expected))


def test_without_a_card_everything_stays_where_it_is():
    courier, value = Courier(torch.device("cpu"), pins=True), torch.ones(3)
    with courier.at_work():
        assert courier.bring(value) is value
    assert courier.arrival() is None


@pytest.fixture
def on_card(monkeypatch):
    """Let the CPU stand for a card that keeps songs, with no RAM beside it."""
    monkeypatch.setattr("woodshed.training.preflight.place_songs", lambda *_: ("card", 0))
    monkeypatch.setattr(batches, "MEMORY_LIMIT", 0)


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize("changes", [{}, {"crop_seconds": 1, "batch_size": 2}])
def test_a_step_without_memory_is_taken_again_once_the_songs_are_gone(settings_for, monkeypatch, changes):
    whole = steps_of(train(settings_for("whole", **changes)))
    micro_step, calls = Engine.micro_step, []

    def short(engine, songs, weight):
        calls.append(songs)
        losses = micro_step(engine, songs, weight)
        if len(calls) == 2:  # the first one's gradients, and its own, are there already
            raise torch.OutOfMemoryError("short")
        return losses

    monkeypatch.setattr(Engine, "micro_step", short)
    events = [*train(settings_for("short", **changes))]
    assert steps_of(events) == whole
    said = [event.text for event in events if isinstance(event, Notice) and "no more room for songs" in event.text]
    assert len(said) == 1
    assert said[0].endswith("read from the disk each time from here on.")


def test_memory_that_nobody_can_give_back_is_asked_for_once():
    calls = []

    def compute():
        calls.append(1)
        raise torch.OutOfMemoryError("full")

    for can_give, times in ((False, 1), (True, 2)):
        calls.clear()
        with pytest.raises(torch.OutOfMemoryError):
            again_with_room(compute, lambda can_give=can_give: can_give)
        assert len(calls) == times
    assert again_with_room(lambda: 5, lambda: pytest.fail("there was room")) == 5


def test_the_seconds_of_steps_are_those_of_the_clock_without_the_rehearsal(settings_for, monkeypatch):
    now = [0.0]
    take_step, rehearse = loop.take_step, Engine.rehearse

    def slow(*given, **named):
        now[0] += 0.25
        return take_step(*given, **named)

    def compile_first(engine, songs):
        now[0] += 60.0 if now[0] < 60 else 0.0
        return rehearse(engine, songs)

    monkeypatch.setattr(loop, "take_step", slow)
    monkeypatch.setattr(Engine, "rehearse", compile_first)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    seconds, epochs = [], []
    for event in train(settings_for(epochs=2)):
        if isinstance(event, StepDone):
            seconds.append(event.seconds)
            now[0] += 0.25  # a view draws
        if isinstance(event, EpochDone):
            epochs.append(event.seconds)
            now[0] += 1000.0  # something between the epochs
    assert seconds == [0.25, 0.5, 0.5] * 2  # the drawing after an epoch's last step is in nobody's way
    assert epochs == [60 + 1.5, 1.5]
