"""Storage in the background: read shards ahead of the work, and commit objects behind it."""

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

# Compressed shards in memory in addition to the one in use: an object store answers several requests as fast as one.
READ_AHEAD = 4


class StorageWait:
    """Counter of the time that a worker waits for storage.

    Attributes:
        seconds: Total waiting time in seconds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def result(self, future: Future[Value]) -> Value:
        """Wait for the result of a future and add the waiting time."""
        began = time.monotonic()
        try:
            return future.result()
        finally:
            self.seconds += time.monotonic() - began


@contextmanager
def background_threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Thread pool that finishes its work on exit, except after Ctrl-C or SIGTERM, which does not wait for a store.

    Args:
        number: Number of threads.

    Raises:
        BaseException: Any exception of the body, re-raised.
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
    store: Store, records: Iterable[Record], waiting: StorageWait | None = None
) -> Iterator[tuple[Record, bytes]]:
    """Verified bytes of objects, in order; background threads read the next objects.

    Args:
        store: Store of the run.
        records: Records of the objects.
        waiting: Counter of the caller's waiting time.

    Yields:
        (record, bytes) of each object.

    Raises:
        DamagedDataError: An object is missing or changed.
    """
    waiting = waiting or StorageWait()
    left = iter(records)
    reads: deque[tuple[Record, Future[bytes]]] = deque()
    with background_threads(READ_AHEAD) as threads:
        while True:
            while len(reads) < READ_AHEAD and (record := next(left, None)) is not None:
                reads.append((record, threads.submit(read_verified, store, record)))
            if not reads:
                return
            record, read = reads.popleft()
            yield record, waiting.result(read)


def commit_behind(
    made: Iterable[tuple[Id, Callable[[], Record]]], waiting: StorageWait | None = None
) -> Iterator[tuple[Id, Record]]:
    """Commit each object in the background while the caller's iterator computes the next one.

    Args:
        made: Pairs of a name and a function that commits the object; advancing the iterator computes the next object.
        waiting: Counter of the iterator's waiting time.

    Yields:
        (name, record) of each object after its commit, in order.
    """
    waiting = waiting or StorageWait()
    under_way: tuple[Id, Future[Record]] | None = None
    with background_threads(1) as thread:
        for name, commit in made:
            before, under_way = under_way, (name, thread.submit(commit))
            if before is not None:
                yield before[0], waiting.result(before[1])
        if under_way is not None:
            yield under_way[0], waiting.result(under_way[1])
