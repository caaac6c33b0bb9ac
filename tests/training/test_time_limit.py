"""`max_time`: who asked to stop, and when."""

import time

import pytest

from woodshed.training.time_limit import TimeLimit


@pytest.mark.parametrize(("minutes", "passed", "is_over"), [(0, 1e9, False), (2, 119, False), (2, 121, True)])
def test_the_time_is_over_after_so_many_minutes(minutes, passed, is_over):
    limit = TimeLimit(minutes, time.monotonic() - passed, lambda: False)
    assert limit() == is_over
    assert bool(limit.notices_at_end()) == is_over
    assert bool(limit.notices()) == bool(minutes)


def test_somebody_else_may_ask_too_and_is_then_the_reason():
    limit = TimeLimit(1, time.monotonic() - 61, lambda: True)
    assert limit()
    assert limit.notices_at_end() == []
    assert not TimeLimit(1, time.monotonic(), lambda: False)()
