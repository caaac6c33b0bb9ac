"""Times and speeds as people read them, and a block that never wraps."""

import math

import pytest
from rich.text import Text

from woodshed.monitor.progress import LiveBlock, Smoothed, duration, pace, time_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.14, "0.1 s"),
        (8, "8 s"),
        (9.4, "9.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7530, "2 h 05 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_times_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_what_is_left_follows_the_pace_so_far():
    assert time_left(2, 10, 4.0) == "16 s"
    assert time_left(10, 10, 4.0) == "0 s"
    assert time_left(0, 10, 4.0) == "?"


def test_slow_things_are_told_in_seconds_and_fast_ones_in_pieces_a_second():
    assert pace(0.5, "step") == "2.00 steps/s"
    assert pace(40, "song") == "40.0 s/song"
    assert pace(0, "step") == ""


def test_a_smoothed_value_starts_at_the_first_and_forgets_it():
    smoothed = Smoothed()
    assert math.isnan(smoothed.value)
    smoothed.add(8.0)
    assert smoothed.value == pytest.approx(8.0)
    smoothed.add(4.0)
    assert smoothed.value == pytest.approx((8 * 0.95 + 4) / 1.95)
    for _ in range(200):
        smoothed.add(1.0)
    assert smoothed.value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_one_overflow_does_not_spoil_a_smoothed_value(value):
    smoothed = Smoothed()
    for number in (2.0, value, 2.0):
        smoothed.add(number)
    assert smoothed.value == pytest.approx(2.0)


@pytest.mark.parametrize("width", [30, 60, 100])
def test_a_block_cuts_its_lines_instead_of_wrapping_them(screen_of, width):
    screen = screen_of(width)
    block = LiveBlock(screen.terminal)
    block.show("songs", 3, 12, "3/12", "a long name " * 20, Text("and another " * 20), "")
    lines = screen.lines()
    assert len(lines) == 3
    assert lines[0].startswith("songs ")
    assert lines[0].endswith(" 3/12")
    assert [line[-1] for line in lines[1:]] == ["…", "…"]
    block.stop()
    assert screen.lines() == []


def test_a_bar_is_as_full_as_the_work_is_done(screen_of):
    def full(done, total):
        screen = screen_of(60)
        block = LiveBlock(screen.terminal)
        block.show("x", done, total, "y")
        block.stop()
        # The finished part is drawn in another colour than the rest.
        frame = screen.file.getvalue().split("y")[0]
        return [part.count("━") for part in frame.split("\x1b[") if "━" in part]

    assert len(full(0, 4)) == len(full(4, 4)) == 1
    half = full(2, 4)
    assert len(half) == 2
    assert abs(half[0] - half[1]) <= 1
