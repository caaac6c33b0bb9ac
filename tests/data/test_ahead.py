"""Threads that work ahead: in order, no more than fits, and gone when nobody wants their work any more."""

import threading

import pytest

from woodshed.data.ahead import AbandonedError, ahead


def nobody_left() -> bool:
    return not any(thread.name.startswith("woodshed-ahead") for thread in threading.enumerate())


def results(stream) -> list:
    return [(item, future.result()) for item, future in stream]


@pytest.mark.parametrize("room", [0, 1, 3, 100])
def test_items_come_in_order_whatever_the_room(room):
    stream = ahead(lambda item, _: item * 2, range(20), threads=3, room=room, weigh=lambda _: 1)
    assert results(stream) == [(number, number * 2) for number in range(20)]
    assert nobody_left()


def test_nothing_to_do_is_nothing():
    assert results(ahead(lambda item, _: item, [], room=1, weigh=lambda _: 1)) == []


def test_others_are_at_work_while_one_is_in_hand():
    begun = {number: threading.Event() for number in range(4)}
    stream = ahead(lambda item, _: begun[item].set(), range(4), threads=2, room=3, weigh=lambda _: 1)
    next(stream)
    assert all(begun[number].wait(10) for number in (0, 1, 2)), "worked on without being asked for"
    assert not begun[3].is_set(), "there is room for three"
    stream.close()


def test_no_more_is_held_than_there_is_room_for():
    held, most, lock = set(), [0], threading.Lock()

    def hold(item, _):
        with lock:
            held.add(item)
            most[0] = max(most[0], sum(held))
        return item

    weights = [5, 1, 2, 3, 9, 1, 1, 6, 4]
    taken = 0
    for item, future in ahead(hold, list(range(len(weights))), threads=4, room=6, weigh=weights.__getitem__):
        future.result()
        assert sum(weights[one] for one in held) <= max(6, weights[item])
        with lock:
            taken += 1
        held_before = held.copy()
        held.clear()
        held.update(held_before - {item})
    assert taken == len(weights)


def test_a_heavy_item_is_worked_on_alone():
    at_work = []
    stream = ahead(lambda item, _: at_work.append(item), ["light", "heavy", "light too"], threads=3, room=2, weigh=len)
    for item, future in stream:
        future.result()
        assert at_work[-1] == item


def test_what_the_work_raises_comes_out_of_its_own_future_and_the_rest_goes_on():
    def work(item, _):
        return 1 // item

    seen = []
    for _, future in ahead(work, [1, 0, 1], room=3, weigh=lambda _: 1):
        try:
            seen.append(future.result())
        except ZeroDivisionError as error:
            seen.append(type(error))
    assert seen == [1, ZeroDivisionError, 1]


def test_whoever_stops_in_the_middle_ends_the_threads():
    stopped = threading.Event()

    def work(item, should_stop):
        if item:
            while not should_stop():
                threading.Event().wait(0.001)
            stopped.set()
            raise AbandonedError
        return item

    stream = ahead(work, range(50), threads=2, room=5, weigh=lambda _: 1)
    next(stream)
    stream.close()
    assert stopped.is_set()
    assert nobody_left()


def test_an_interrupt_where_the_result_is_awaited_ends_the_threads_too():
    stream = ahead(lambda item, _: item, range(50), threads=2, room=5, weigh=lambda _: 1)

    def interrupt():
        for _ in stream:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    stream.close()
    assert nobody_left()
