"""Work done in threads ahead of whoever uses the results, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, window: int) -> Iterator[Result]:
    """`function` of every item, in the order of the items, at most `window` of them waiting.

    >>> list(ahead(lambda n: n * n, [1, 2, 3], workers=2, window=2))
    [1, 4, 9]
    """
    source = iter(items)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(source, window))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(source, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
