"""A whole run's loss as one line of text."""

from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"
MOST_POINTS = 96  # kept, however long the run is


class LossCurve:
    """Averages neighbours as a run grows, so that one line always shows all of it."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._held: list[float] = []  # values of the point that is not full yet
        self._values_in_a_point = 1

    def add(self, value: float) -> None:
        """Take one more value."""
        self._held.append(value)
        if len(self._held) < self._values_in_a_point:
            return
        self._means.append(_mean(self._held))
        self._held = []
        if len(self._means) == MOST_POINTS:
            self._means = _merged(self._means, MOST_POINTS // 2)
            self._values_in_a_point *= 2

    def draw(self, width: int) -> str:
        """Return at most `width` bars, from the first value to the latest; nothing while there is only one."""
        points = _merged(self._means, width) if len(self._means) > width else self._means
        if len(points) < 2:
            return ""
        lowest, highest = min(points), max(points)
        span = (highest - lowest) or 1.0
        return "".join(BARS[round((point - lowest) / span * (len(BARS) - 1))] for point in points)


def _merged(points: list[float], count: int) -> list[float]:
    """Return `count` means of neighbouring points."""
    edges = [round(index * len(points) / count) for index in range(count + 1)]
    return [_mean(points[start:end]) for start, end in pairwise(edges)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
