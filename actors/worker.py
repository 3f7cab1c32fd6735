"""The remote shells: an actor around a plain worker, a task around a plain generator function."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.identity import WorkerIdentity
from pipeline.errors import JobError, WorldModelsError
from pipeline.executor import Inbox, Worker
from pipeline.logs import configure_logging
from pipeline.progress import Update
from pipeline.threads import num_threads

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, concurrency_groups={"inbox": 1})
class WorkerActor:
    """One worker on one CPU: a thread that works, and one that now and then puts jobs before it.

    Args:
        label: what Ray calls it, in its dashboard ("Repr", and before the names of its tasks) and its logs.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        configure_logging()
        self._inbox = TimedInbox()
        self._begun_by = 0

    def __repr__(self) -> str:
        return self._label

    def identity(self) -> WorkerIdentity:
        """Answers once the process is up."""
        return _logged_identity()

    def build(self, factory: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
        """Make the worker: a call of its own, so that it can be told from waiting for a node."""
        with num_threads(1):
            self._worker = factory(*arguments)
        # What a worker is built of lives as long as it does, and Box2D's wrappers come and go by the thousand: without
        # this a twentieth of a rollout's time is the collector looking at all of it again.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    def run(self, jobs: Sequence[Any], number: int) -> Iterator[tuple[Hashable, Any, float]]:
        """``Worker.run``, each result on its way as soon as it is there, with the seconds since its job was taken.

        Goes on while there are jobs: these, and what is added meanwhile.

        Args:
            jobs: all that have no result yet.
            number: of this message; the caller's messages are numbered, as they may overtake each other.
        """
        self._begun_by = number
        self._inbox.clear()
        self._inbox.add(jobs)
        with num_threads(1), _traceback_logged():
            try:
                for job_id, result in self._worker.run(self._inbox):
                    yield job_id, result, self._inbox.seconds_since_taken(job_id)
            except BaseException:
                self._inbox.clear()  # the driver hands them to others
                raise

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def add(self, jobs: Sequence[Any], number: int) -> None:
        """Put jobs behind those that lie there, unless a call has begun that knew of them."""
        if number > self._begun_by:
            self._inbox.add(jobs)

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def take_back(self, ids: Sequence[Hashable]) -> None:
        """Leave out those of some jobs that are not begun."""
        self._inbox.take_back(ids)


class TimedInbox(Inbox):
    """An inbox that knows when each job was taken out of it."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: dict[Hashable, float] = {}

    def __next__(self) -> Any:
        job = super().__next__()
        self._taken[job.id] = time.monotonic()
        return job

    def seconds_since_taken(self, job_id: Hashable) -> float:
        return time.monotonic() - self._taken.pop(job_id)


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def run_task(
    task: Callable[..., Generator[Update, None, Any]], arguments: tuple[Any, ...], threads: int
) -> Iterator[tuple[str, Any]]:
    """``("worker", identity)``, the task's updates as ``("update", ...)``, then ``("result", ...)``."""
    configure_logging()
    yield "worker", _logged_identity()
    with num_threads(threads), _traceback_logged():
        updates = task(*arguments)
        while True:
            try:
                yield "update", next(updates)
            except StopIteration as end:
                yield "result", end.value
                return


def _logged_identity() -> WorkerIdentity:
    identity = WorkerIdentity.of_this_process()
    # Of a job's workers: where no sources travel, they are the driver's own, and Ray shows the line at every start.
    if "working_dir" in ray.get_runtime_context().runtime_env:
        logger.info("code version %s, %s", identity.code_version, identity.cpu_kind)
    return identity


@contextmanager
def _traceback_logged() -> Iterator[None]:
    """The driver gets the error; where it was raised is in this worker's log."""
    try:
        yield
    except Exception as error:
        if isinstance(error, JobError) or not isinstance(error, WorldModelsError):
            logger.exception("this worker raised")
        raise


def not_to_be_retried(error: RayTaskError) -> WorldModelsError | None:
    """What a worker raised, where it is an error of this project that says what to do: it comes back as it is."""
    cause = error.cause
    return cause if isinstance(cause, WorldModelsError) and not isinstance(cause, JobError) else None
