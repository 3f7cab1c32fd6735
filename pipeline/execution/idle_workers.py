"""Which workers could begin more jobs, and which have jobs that they have not begun: kept up to date at each change."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.execution.worker_state import ScheduledWorker, WorkerState

_KEEP_THEIR_JOBS = (WorkerState.UNREACHABLE, WorkerState.REMOVED)


class IdleAndFull:
    """Idle and full workers. A look takes the same time with any number of workers.

    Attributes:
        idle: Workers that could begin more jobs.
        empty: Workers among them that have no job at all.
    """

    def __init__(self) -> None:
        self.idle: dict[ScheduledWorker, None] = {}
        self.empty: dict[ScheduledWorker, None] = {}
        self._noted: dict[ScheduledWorker, tuple[int, int, int]] = {}
        self._free = self._awaited = 0
        self._by_surplus: dict[int, dict[ScheduledWorker, None]] = {}
        self._largest = 0

    def update(self, worker: ScheduledWorker) -> None:
        """Note a worker's present state and jobs."""
        free = worker.free_lanes
        awaited = 0 if worker.recalled is None else len(worker.recalled)
        surplus = 0 if awaited or worker.state in _KEEP_THEIR_JOBS else worker.surplus
        now, before = (free, surplus, awaited), self._noted.get(worker, (0, 0, 0))
        _put(self.empty, worker, free > 0 and not worker.jobs)
        if now == before:
            return
        _put(self.idle, worker, free > 0)
        self._free += free - before[0]
        self._awaited += awaited - before[2]
        if before[1]:
            del self._by_surplus[before[1]][worker]
        if surplus:
            self._by_surplus.setdefault(surplus, {})[worker] = None
            self._largest = max(self._largest, surplus)
        if any(now):
            self._noted[worker] = now
        else:
            del self._noted[worker]

    def surplus_for_idle(self) -> Iterator[tuple[ScheduledWorker, int]]:
        """Yield (worker, number of jobs to recall) for idle workers, the fullest first.

        Call ``update`` with each worker before the next.
        """
        while (wanted := self._free - self._awaited) > 0:
            while self._largest and not self._by_surplus.get(self._largest):
                self._largest -= 1
            if not self._largest:
                return
            yield next(iter(self._by_surplus[self._largest])), min(wanted, self._largest)


def _put(workers: dict[ScheduledWorker, None], worker: ScheduledWorker, present: bool) -> None:
    if present:
        workers[worker] = None
    else:
        workers.pop(worker, None)
