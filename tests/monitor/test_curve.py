"""A run's loss as one line, whatever the run's length."""

import pytest

from woodshed.monitor.curve import BARS, MOST_POINTS, LossCurve


def curve_of(values):
    curve = LossCurve()
    for value in values:
        curve.add(value)
    return curve


def test_a_falling_loss_falls_from_the_highest_bar_to_the_lowest():
    assert curve_of(range(8, 0, -1)).draw(40) == BARS[::-1]


def test_a_curve_needs_two_points_and_a_flat_one_is_flat():
    assert curve_of([]).draw(40) == curve_of([1.0]).draw(40) == ""
    assert curve_of([2.0] * 5).draw(40) == BARS[0] * 5


@pytest.mark.parametrize("count", [41, 95, 96, 97, 191, 192, 1000, 5000])
def test_long_runs_keep_their_shape_and_fit(count):
    curve = curve_of(float(count - step) for step in range(count))
    drawn = curve.draw(40)
    assert len(drawn) == 40
    assert drawn[0] == BARS[-1]
    assert drawn[-1] == BARS[0]
    assert list(drawn) == sorted(drawn, reverse=True)
    assert len(curve._means) <= MOST_POINTS


def test_neighbours_are_averaged_so_that_noise_does_not_hide_the_course():
    noisy = [step % 2 + (10 if step < 2000 else 0) for step in range(4000)]
    drawn = curve_of(noisy).draw(20)
    assert drawn[:9] + drawn[11:] == BARS[-1] * 9 + BARS[0] * 9
