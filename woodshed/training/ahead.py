"""Making the next items while somebody works on the last one."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END: Any = object()


def read_ahead(items: Generator[Item, None, None], count: int = 2) -> Iterator[Item]:
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
