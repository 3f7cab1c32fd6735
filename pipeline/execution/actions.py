"""Actions of the scheduler. An executor turns each into calls.

The worker of an action is the object that the executor reported by ``Scheduler.requested``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.execution.jobs import Ticket


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for workers. Each is reported by ``Scheduler.requested``.

    Attributes:
        count: Number of workers.
    """

    count: int


@dataclass(frozen=True, slots=True)
class Build:
    """Have a worker's process build its worker."""

    worker: Any


@dataclass(frozen=True, slots=True)
class Send:
    """Send jobs to a worker, and ask for results if ``asks``.

    Attributes:
        worker: Worker.
        tickets: Tickets of jobs in the order of their start; maybe none. A ticket that the worker has already is not
            to be added again.
        asks: Whether the worker is asked for its next results. It is asked again only after it has answered.
        batching_delay_s: Maximum number of seconds that the worker keeps results while it has jobs that it has not
            begun. It answers without results if it has no jobs.
    """

    worker: Any
    tickets: Sequence[Ticket]
    asks: bool
    batching_delay_s: float


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask a worker to release the jobs of the tickets with these IDs, unless it has begun them."""

    worker: Any
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ReportHung:
    """Report a silent worker as failed (``FailureKind.HUNG``), unless an answer from it has arrived."""

    worker: Any


@dataclass(frozen=True, slots=True)
class End:
    """End a worker.

    Attributes:
        worker: Worker.
        preempted: Whether it left because its node goes away, or was lost with it; None if it was not lost.
    """

    worker: Any
    preempted: bool | None


Action: TypeAlias = Request | Build | Send | Recall | ReportHung | End
