"""State of one ``map`` of a pool, and the failure of a call to one of its workers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from actors.worker_handle import WorkerHandle
from pipeline.execution.jobs import JobQueue


class Failed(Exception):
    """A call to a worker failed.

    Attributes:
        worker: Worker that was called.
        cause: Error; None if the worker hung.
    """

    def __init__(self, worker: WorkerHandle, what: str, cause: BaseException | None) -> None:
        super().__init__(what)
        self.worker = worker
        self.cause = cause

    @property
    def raised(self) -> bool:
        """Whether a job raised the error, rather than Ray."""
        return self.cause is not None and not isinstance(self.cause, RayError)


@dataclass
class Round:
    """State of one ``map``.

    Attributes:
        queue: Jobs that wait for a worker.
        missing: Jobs without a result, by ID.
        seconds: Durations of the finished jobs in their workers, in seconds.
    """

    queue: JobQueue
    missing: dict[Hashable, Any]
    seconds: list[float]

    def without_result(self, jobs: Iterable[Any]) -> list[Any]:
        """The given jobs that have no result yet."""
        return [job for job in jobs if job.id in self.missing]
