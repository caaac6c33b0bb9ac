"""Making the next items while somebody works on the last one."""

import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_END: Any = object()


class Supply(Generic[Item]):
    """Items that are made ahead, and how long they were waited for all the same.

    Args:
        items: closed when the supply is.
    """

    def __init__(self, items: Generator[Item, None, None]) -> None:
        self._items = read_ahead(items)
        self.waited = 0.0  # seconds, in all

    def take(self, count: int) -> list[Item]:
        """Return the next items, fewer where there are no more."""
        began = time.monotonic()
        taken = list(islice(self._items, count))
        self.waited += time.monotonic() - began
        return taken

    def close(self) -> None:
        """Make no more."""
        self._items.close()


def read_ahead(items: Generator[Item, None, None], count: int = 2) -> Generator[Item, None, None]:
    """Yield items that a thread makes, up to `count` of them before they are asked for.

    Whoever stops asking ends the making: the item in hand is finished, then `items` is closed. What goes wrong in the
    thread is raised where the item would have been.
    """
    made: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as maker:
        try:
            made.extend(maker.submit(next, items, _END) for _ in range(count))
            while (item := made.popleft().result()) is not _END:
                made.append(maker.submit(next, items, _END))
                yield item
        finally:
            maker.shutdown(cancel_futures=True)
            items.close()
