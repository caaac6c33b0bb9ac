"""Reading ahead: the same items, made before they are asked for, and ended cleanly."""

import threading

import pytest

from woodshed.training import ahead
from woodshed.training.ahead import Supply, read_ahead


def counted(count, made, ended=None):
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        if ended is not None:
            ended.append(True)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_the_items_come_in_order_and_all_of_them(count):
    assert list(read_ahead(counted(count, []))) == list(range(count))


def test_the_next_items_are_made_while_somebody_works_and_no_more():
    made, is_made = [], threading.Event()

    def items():
        for number in range(9):
            made.append(number)
            if number == 2:
                is_made.set()
            yield number

    stream = read_ahead(items(), count=2)
    assert next(stream) == 0
    assert is_made.wait(timeout=30)
    assert made == [0, 1, 2]
    stream.close()


def test_what_goes_wrong_is_raised_in_its_place():
    def items():
        yield 1
        raise ValueError("the second")

    stream = read_ahead(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="the second"):
        next(stream)


def test_whoever_stops_asking_ends_the_making():
    made, ended = [], []
    stream = read_ahead(counted(100, made, ended))
    next(stream)
    stream.close()
    assert ended == [True]
    assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead") and thread.is_alive()]


def test_a_supply_counts_the_time_in_which_somebody_waits_and_no_other(monkeypatch):
    now = [100.0]

    def late(items):
        for item in items:
            now[0] += 2.0
            yield item

    monkeypatch.setattr(ahead, "read_ahead", late)
    monkeypatch.setattr(ahead.time, "monotonic", lambda: now[0])
    supply = Supply(iter("abcde"))
    assert supply.take(2) == ["a", "b"]
    assert supply.waited == 4.0
    now[0] += 50.0  # somebody works
    assert supply.take(0) == []
    assert supply.take(9) == ["c", "d", "e"]
    assert supply.waited == 10.0


def test_a_supply_that_is_closed_makes_no_more():
    made, ended = [], []
    supply = Supply(counted(100, made, ended))
    supply.take(1)
    supply.close()
    assert ended == [True]
    assert supply.take(1) == []
