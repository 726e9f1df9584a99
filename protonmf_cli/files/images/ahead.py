"""Work done in threads ahead of whoever uses the results, in order."""

import time
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
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        waiting.extend(pool.submit(function, item) for item in islice(source, window))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:  # whoever wants no more results does not wait for those that are being made
        pool.shutdown(wait=False, cancel_futures=True)


def ahead_if_slow(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, window: int, seconds: float
) -> Iterator[Result]:
    """As `ahead`, from the first item on that takes longer than so many seconds: threads that never wait cost time.

    >>> list(ahead_if_slow(lambda n: n * n, [1, 2, 3], workers=2, window=2, seconds=0.0))
    [1, 4, 9]
    """
    source = iter(items)
    for item in source:
        start = time.perf_counter()
        result = function(item)
        taken = time.perf_counter() - start
        yield result
        if taken > seconds:
            break
    yield from ahead(function, source, workers=workers, window=window)
