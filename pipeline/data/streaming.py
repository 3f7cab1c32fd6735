"""Storage beside work: shards read ahead of whoever needs them, and committed behind whoever made them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pipeline.storage.manifest import Record, read_verified
from pipeline.storage.store import Store

Id = TypeVar("Id")
Value = TypeVar("Value")

# Shards in memory, compressed, besides the one in use: an object store answers several requests as fast as one.
READ_AHEAD = 4


class Waiting:
    """Seconds that a worker has stood still for storage."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def result(self, future: Future[Value]) -> Value:
        """A future's result, the time until then counted."""
        began = time.monotonic()
        try:
            return future.result()
        finally:
            self.seconds += time.monotonic() - began


@contextmanager
def threads_not_waited_for(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose work is finished at the end, but for a stop: Ctrl-C or SIGTERM waits for no store.

    Raises:
        BaseException: whatever ended it.
    """
    threads = ThreadPoolExecutor(number)
    try:
        yield threads
    except (KeyboardInterrupt, GeneratorExit):
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        threads.shutdown(cancel_futures=False)
        raise
    threads.shutdown()


def read_ahead(
    store: Store, records: Iterable[Record], waiting: Waiting | None = None
) -> Iterator[tuple[Record, bytes]]:
    """Objects with their verified bytes, in order; the next ones are read meanwhile.

    Args:
        store: where they are.
        records: of the objects.
        waiting: counts the time that the caller waits.
    """
    waiting = waiting or Waiting()
    left = iter(records)
    reads: deque[tuple[Record, Future[bytes]]] = deque()
    with threads_not_waited_for(READ_AHEAD) as threads:
        while True:
            while len(reads) < READ_AHEAD and (record := next(left, None)) is not None:
                reads.append((record, threads.submit(read_verified, store, record)))
            if not reads:
                return
            record, read = reads.popleft()
            yield record, waiting.result(read)


def commit_behind(
    made: Iterable[tuple[Id, Callable[[], Record]]], waiting: Waiting | None = None
) -> Iterator[tuple[Id, Record]]:
    """Commit objects as they are made, each while the next one is being made.

    Args:
        made: a name, and what commits the object; taking the next one is the work that goes on meanwhile.
        waiting: counts the time that the work waits.

    Yields:
        (name, record) of each, once it is committed, in order.
    """
    waiting = waiting or Waiting()
    under_way: tuple[Id, Future[Record]] | None = None
    with threads_not_waited_for(1) as thread:
        for name, commit in made:
            before, under_way = under_way, (name, thread.submit(commit))
            if before is not None:
                yield before[0], waiting.result(before[1])
        if under_way is not None:
            yield under_way[0], waiting.result(under_way[1])
