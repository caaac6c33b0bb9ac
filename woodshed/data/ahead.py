"""Work done ahead in threads, so that nobody waits for a disk or a decoder: in order, and never more than fits."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
ShouldStop = Callable[[], bool]

MOST_THREADS = 4
THREADS = min(MOST_THREADS, os.cpu_count() or 1)


class AbandonedError(Exception):
    """Raised by work that nobody wants any more; nobody sees it."""


def ahead(
    work: Callable[[Item, ShouldStop], Result],
    items: Iterable[Item],
    *,
    threads: int = THREADS,
    room: float,
    weigh: Callable[[Item], float],
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Yield every item with what is to become of it, in order, while threads work on those that follow.

    Whoever stops in the middle (Ctrl-C, an error) ends the threads: they ask `should_stop` from time to time, and what
    has not begun never does.

    Args:
        work: called with an item and with `should_stop`; what it raises comes out of the future.
        items: in any number; taken only as far as there is room.
        threads: at work at the same time.
        room: what may be held at once, in the unit of `weigh`; an item heavier than this is worked on alone.
        weigh: what an item and its result take.
    """
    stopped = threading.Event()
    held: deque[tuple[Item, Future[Result], float]] = deque()
    taken = 0.0
    with ThreadPoolExecutor(threads, thread_name_prefix="woodshed-ahead") as pool:
        try:
            for item in items:
                weight = weigh(item)
                while held and (taken + weight > room or len(held) > threads):
                    yield held[0][:2]
                    taken -= held.popleft()[2]
                held.append((item, pool.submit(work, item, stopped.is_set), weight))
                taken += weight
            while held:
                yield held[0][:2]
                held.popleft()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
