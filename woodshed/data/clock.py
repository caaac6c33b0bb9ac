"""How busy the device is while songs are encoded, and how much of its memory that takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """How long the device was at work, and how long the steps took in which it could have been."""

    busy: float = 0.0  # seconds
    total: float = 0.0
    peaks: dict[str, int] = field(default_factory=dict)  # most bytes on the device in each step, where that is known

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count a step of the work, with everything that happens in it."""
        started_at = time.monotonic()
        try:
            yield
        finally:
            self.total += time.monotonic() - started_at

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count what the device does; it must have finished at the end."""
        started_at = time.monotonic()
        try:
            yield
        finally:
            self.busy += time.monotonic() - started_at

    @property
    def waited(self) -> float | None:
        """The share of the time in which the device had nothing to do, None where it had no work at all."""
        return 1 - self.busy / self.total if self.busy else None
