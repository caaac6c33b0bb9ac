"""`max_time`: a run that must end by itself, because a machine is only lent for so long."""

import time
from collections.abc import Callable


class TimeLimit:
    """Asks a run to stop when somebody else does, or when its time is up.

    Args:
        minutes: from the start of the program on; 0 for no limit.
        started_at: by the monotonic clock, in seconds.
        should_stop: whether somebody else asks.
    """

    def __init__(self, minutes: float, started_at: float, should_stop: Callable[[], bool]) -> None:
        self._minutes, self._started_at, self._should_stop = minutes, started_at, should_stop

    def __call__(self) -> bool:
        """Whether the run should stop."""
        return self._should_stop() or self._is_over()

    def _is_over(self) -> bool:
        return self._minutes > 0 and time.monotonic() - self._started_at >= 60 * self._minutes

    def notices(self) -> list[str]:
        """Return what the user should know before the first step."""
        return [f"The run saves and stops after {self._minutes:g} minutes (max_time)."] if self._minutes else []

    def notices_at_end(self) -> list[str]:
        """Return why the run has stopped, if it was for the time."""
        is_why = self._is_over() and not self._should_stop()
        return [f"The {self._minutes:g} minutes of max_time are over."] if is_why else []
