"""The remote shells: an actor around a plain worker, a task around a plain generator function."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.identity import WorkerIdentity
from actors.mailbox import Mailbox
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
    """One worker on one CPU: a thread that works, and two that now and then bring it jobs and fetch its results.

    Args:
        label: what Ray calls it, in its dashboard ("Repr", and before the names of its tasks) and its logs.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        configure_logging()
        arm_from_environment(WORKER_VARIABLE)
        self._mailbox = Mailbox()

    def __repr__(self) -> str:
        return self._label

    def identity(self) -> WorkerIdentity:
        """Answers once the process is up."""
        return _logged_identity()

    def build(self, factory: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
        """Make the worker: a call of its own, so that it can be told from waiting for a node."""
        built: Future[None] = Future()
        threading.Thread(target=self._work, args=(factory, arguments, built), daemon=True).start()
        built.result()
        # What a worker is built of lives as long as it does, and Box2D's wrappers come and go by the thousand: without
        # this a twentieth of a rollout's time is the collector looking at all of it again.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    def exchange(self, message: bytes) -> bytes:
        """Bring jobs, and wait for results of ``Worker.run``. The worker goes on between two calls.

        Args:
            message: pickled, the arguments of ``Mailbox.post``, then of ``Mailbox.fetch``.

        Returns:
            Pickled, what ``Mailbox.fetch`` returns.
        """
        jobs, failures, linger_s = pickle.loads(message)
        self._mailbox.post(jobs, failures)
        return pickle.dumps(self._mailbox.fetch(linger_s))

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def add(self, message: bytes) -> None:
        """Put jobs behind those that lie there, while another call waits for results.

        Args:
            message: pickled, the arguments of ``Mailbox.post``.
        """
        self._mailbox.post(*pickle.loads(message))

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def take_back(self, ids: Sequence[Hashable]) -> list[Hashable]:
        """Leave out those of some jobs that lie here and are not begun; returns their ids."""
        return self._mailbox.take_back(ids)

    def _work(self, factory: Callable[..., Worker], arguments: tuple[Any, ...], built: Future[None]) -> None:
        try:
            with num_threads(1):
                worker = factory(*arguments)
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        with num_threads(1):  # anew: the worker may have imported torch, which was out of reach before
            while True:
                self._mailbox.wait_for_jobs()
                try:
                    with _traceback_logged():
                        for job_id, result in worker.run(self._mailbox):
                            self._mailbox.put_out(job_id, result)
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
    """``("begun", None)``, the task's updates as ``("update", ...)``, then ``("result", ...)``.

    Args:
        task, arguments: what to run.
        threads: for it alone.
        check: raises where this is no worker for it: nothing has begun then.
        key: Unique key, under which this process is announced before anything begins.
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
    """Kill a process of the node that this runs on, and wait for its end.

    Args:
        pid: Process id.
        started: Its beginning, see ``pipeline.base.machine.process_started``: the id may be another process's by now.
        timeout_s: Seconds to wait at most.

    Returns:
        Whether it is gone.
    """
    if pid == os.getpid():  # the task has ended by itself, and Ray has put this one in its place
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
