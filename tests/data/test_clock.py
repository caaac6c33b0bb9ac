"""The share of the time in which a device waits."""

import pytest

from woodshed.data import clock
from woodshed.data.clock import Clock


@pytest.fixture
def now(monkeypatch):
    class Now:
        at = 100.0

    monkeypatch.setattr(clock.time, "monotonic", lambda: Now.at)
    return Now


def test_time_in_a_step_in_which_the_device_does_nothing_is_waiting(now):
    watch = Clock()
    for busy in (2, 4):
        with watch.step():
            now.at += 1
            with watch.at_work():
                now.at += busy
            now.at += 0.5
        now.at += 50  # between two steps the models are loaded
    assert watch.total == 9
    assert watch.waited == pytest.approx(3 / 9)


def test_a_step_that_fails_counts(now):
    watch = Clock()

    def fail():
        with watch.step(), watch.at_work():
            now.at += 2
            {}["nothing"]

    with pytest.raises(KeyError):
        fail()
    assert (watch.busy, watch.total, watch.waited) == (2, 2, 0)


def test_nobody_waited_where_there_was_nothing_to_do():
    assert Clock().waited is None
