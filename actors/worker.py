"""Remote wrappers: an actor around a plain worker, a task around a plain generator function."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import ray

from actors.mailbox import Mailbox
from actors.worker_identity import WorkerIdentity, runs_uploaded_sources
from pipeline.base.errors import JobError, WorldModelsError
from pipeline.base.failpoints import WORKER_VARIABLE, arm_from_environment
from pipeline.base.logs import configure_logging
from pipeline.base.machine import process_started
from pipeline.base.progress import Update
from pipeline.base.threads import num_threads
from pipeline.execution.protocol import Worker

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, concurrency_groups={"inbox": 1})
class WorkerActor:
    """One worker on one CPU: one thread runs jobs, two threads serve calls that bring jobs and fetch results.

    Args:
        label: Name of the actor in Ray's dashboard ("Repr", and before the names of its tasks) and logs.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        configure_logging()
        arm_from_environment(WORKER_VARIABLE)
        self._mailbox = Mailbox()

    def __repr__(self) -> str:
        return self._label

    def identity(self) -> WorkerIdentity:
        """Identity of this process. The answer shows that the process is up."""
        return _logged_identity()

    def build(self, factory: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
        """Build the worker. A separate call distinguishes building from waiting for a node."""
        built: Future[None] = Future()
        threading.Thread(target=self._work, args=(factory, arguments, built), daemon=True).start()
        built.result()
        # A worker's objects live as long as the worker, and Box2D creates thousands of short-lived wrappers. Without
        # this, the garbage collector takes 5% of a rollout's time to scan all of them again.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    def exchange(self, message: bytes) -> bytes:
        """Bring jobs, and wait for results of ``Worker.run``. The worker continues between two calls.

        Args:
            message: Pickled arguments of ``Mailbox.post``, then of ``Mailbox.fetch``.

        Returns:
            Pickled results of ``Mailbox.fetch``.
        """
        tickets, failures, batching_delay_s = pickle.loads(message)
        self._mailbox.post(tickets, failures)
        return pickle.dumps(self._mailbox.fetch(batching_delay_s))

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def add(self, message: bytes) -> None:
        """Append jobs to the mailbox while another call waits for results.

        Args:
            message: Pickled arguments of ``Mailbox.post``.
        """
        self._mailbox.post(*pickle.loads(message))

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def recall(self, ids: Sequence[int]) -> list[int]:
        """See ``Mailbox.recall``."""
        return self._mailbox.recall(ids)

    def _work(self, factory: Callable[..., Worker], arguments: tuple[Any, ...], built: Future[None]) -> None:
        try:
            with num_threads(1):
                worker = factory(*arguments)
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        with num_threads(1):  # again: the factory may have imported torch, whose threads are limited only now
            while True:
                self._mailbox.wait_for_jobs()
                try:
                    with _traceback_logged():
                        for job_id, result in worker.run(self._mailbox):
                            self._mailbox.put_result(job_id, result)
                        if self._mailbox.unfinished():
                            raise JobError(f"a worker ended without results for {self._mailbox.unfinished()}")
                except BaseException as error:
                    self._mailbox.fail(error)


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def run_task(
    task: Callable[..., Generator[Update, None, Any]],
    arguments: tuple[Any, ...],
    threads: int,
    check: Callable[[WorkerIdentity], None],
    key: str,
) -> Iterator[tuple[str, Any]]:
    """Run a task.

    Args:
        task: Generator function that yields updates and returns a result.
        arguments: Arguments of the task.
        threads: Number of threads of the task.
        check: Check of this worker's identity before the task begins; raises if the worker is unsuitable.
        key: Unique key under which this process is announced before the task begins.

    Yields:
        ``("begun", None)``, the task's updates as ``("update", ...)``, then ``("result", ...)``.
    """
    configure_logging()
    identity = _logged_identity()
    identity.announce(key)
    arm_from_environment(WORKER_VARIABLE)
    yield "begun", None
    check(identity)
    with num_threads(threads), _traceback_logged():
        updates = task(*arguments)
        while True:
            try:
                yield "update", next(updates)
            except StopIteration as end:
                yield "result", end.value
                return


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def end_process(pid: int, started: float, timeout_s: float) -> bool:
    """Kill a process on the node of this task, and wait for its end.

    Args:
        pid: Process ID.
        started: Start of the process, see ``pipeline.base.machine.process_started``; the ID may have been reused.
        timeout_s: Maximum wait in seconds.

    Returns:
        Whether the process has ended.
    """
    if pid == os.getpid():  # the task has ended, and Ray reused its process for this one
        return True
    deadline = time.monotonic() + timeout_s
    while process_started(pid) == started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _logged_identity() -> WorkerIdentity:
    identity = WorkerIdentity.of_this_process()
    # Only in jobs, which bring their sources. Otherwise the version is the driver's, and Ray would show every line.
    if runs_uploaded_sources():
        logger.info("code version %s, %s", identity.code_version, identity.cpu_kind)
    return identity


@contextmanager
def _traceback_logged() -> Iterator[None]:
    """Write the traceback to this worker's log; the driver gets only the error."""
    try:
        yield
    except Exception as error:
        if isinstance(error, JobError) or not isinstance(error, WorldModelsError):
            logger.exception("this worker raised an error")
        raise
