"""One ``map`` of a pool, and how a call to one of its members fails."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from actors.member import Member
from pipeline.execution.jobs import JobQueue


class Failed(Exception):
    """A call to a member came to nothing.

    Attributes:
        member: whose.
        cause: the error; None where it hung.
    """

    def __init__(self, member: Member, what: str, cause: BaseException | None) -> None:
        super().__init__(what)
        self.member = member
        self.cause = cause

    @property
    def raised(self) -> bool:
        """Whether a job raised it, rather than Ray."""
        return self.cause is not None and not isinstance(self.cause, RayError)


@dataclass
class Round:
    """One ``map``.

    Attributes:
        queue: the jobs that wait for a worker.
        missing: the jobs without a result, by id.
        seconds: that jobs took in their workers.
    """

    queue: JobQueue
    missing: dict[Hashable, Any]
    seconds: list[float]

    def without_result(self, jobs: Iterable[Any]) -> list[Any]:
        return [job for job in jobs if job.id in self.missing]
