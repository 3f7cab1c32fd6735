"""The executor on Ray: the Ray that this process has joined already, a named cluster, or a local Ray of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from actors.connection import connect, is_private
from actors.failures import classify
from actors.listening import LISTEN_S
from actors.nodes import nodes, sharing_a_folder
from actors.placement import Placement
from actors.pool import RayPool
from actors.task import TaskSilent, TaskTry
from actors.telemetry import Telemetry
from actors.worker_identity import WorkerIdentity, runs_uploaded_sources
from pipeline.base.errors import ConfigError, JobError
from pipeline.base.machine import num_cores
from pipeline.base.progress import Metrics, Update
from pipeline.config.schema import ExecutionConfig
from pipeline.execution.failures import Failure, FailureKind, abandoned_error, hung
from pipeline.execution.protocol import Pool, Resources, Worker

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_MAX_LOST_NODES = 10  # after which a task that was lost with each of them is abandoned


class RayExecutor:
    """Tasks and pools on Ray. See ``pipeline.execution.protocol.Executor``.

    Args:
        execution: Section ``execution`` of the run, which names the cluster.
        name: Name of the run, in the metrics that Ray exports.
        threads: Threads of the stage that uses the most; a local Ray gets at least as many CPUs.

    Raises:
        ConfigError: The named cluster cannot be joined, or several of its nodes share a folder.
        ClusterError: No local Ray starts.
    """

    def __init__(self, execution: ExecutionConfig, name: str = "run", threads: int = 1) -> None:
        self._execution = execution
        self._owns_ray = not ray.is_initialized()
        self._local = False
        if self._owns_ray:
            # A local Ray may have more CPUs (for training) than there are cores.
            self._local = connect(execution, max(num_cores(), threads, execution.workers or 1))
        elif is_private():
            self._local = True  # the Ray that a study has started for its runs
        if runs_uploaded_sources() and (shared := sharing_a_folder()):
            self.close()
            raise ConfigError(
                f"{shared[0]} on one machine is the folder of several nodes. Each node unpacks this job's sources "
                "there and deletes the sources that other nodes are running. Start each further node of a machine with "
                "its own folder, `ray start --temp-dir=/tmp/ray-2 ...`, or run in the folder of the sources without a "
                "job: RAY_ADDRESS=HOST:PORT world-models run ..."
            )
        self.can_grow = not self._local
        self.has_gpu = any(node.num_gpus > 0 for node in nodes() if node.alive)
        # A cluster may grow, so that only the jobs limit the number of workers.
        self._max_workers = execution.workers or (num_cores() if self._local else None)
        self._telemetry = Telemetry(name)

    @property
    def ready_workers(self) -> int:
        """See ``pipeline.execution.protocol.Executor.ready_workers``."""
        return self._telemetry.ready_workers

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """See ``pipeline.execution.protocol.Executor.run``.

        A task is restarted if its worker dies or hangs, or if an environment raises, and resumes by itself. Losing the
        node does not count as an attempt (up to 10 times).
        """
        driver = WorkerIdentity.of_this_process()
        check = partial(WorkerIdentity.check, driver=driver, exact=self._execution.exact, on_gpu=resources.gpus > 0)
        max_attempts, timeout_s = self._execution.max_attempts, self._execution.timeout_s
        tries = nodes_lost = 0
        causes: set[str] = set()
        while True:
            attempt = TaskTry(task, arguments, resources=resources, check=check, timeout_s=timeout_s)
            try:
                for kind, value in attempt.messages():
                    if kind == "result":
                        attempt.forget()
                        return value  # type: ignore[no-any-return]
                    if kind == "update":
                        on_update(value)
                    elif not self._local and (worker := attempt.worker) is not None:
                        worker.warn_if_starved()
                failure = Failure(FailureKind.WORKER_LOST, "it ended without a result", None)
            except RayError as error:
                failure = classify(error)
            except TaskSilent:
                failure = hung(timeout_s)
                self._require_end(attempt, timeout_s)
            except BaseException:
                # Refused or interrupted: the task must not continue to write without its driver.
                attempt.cancel()
                raise
            if failure.kind is FailureKind.FATAL and failure.cause is not None:
                raise failure.cause
            what = f"{failure.what}; {attempt.where()}"
            if self._lost_with_node(failure, attempt):
                nodes_lost += 1
                if attempt.worker is not None:  # else it was sent to a node whose loss Ray had not noticed yet
                    self._telemetry.lost_worker(preempted=True)
                if nodes_lost == _MAX_LOST_NODES:
                    raise JobError(
                        f"{attempt.name} was lost with its node {nodes_lost} times. Check whether this task is "
                        f"killing the nodes, for example by running out of memory. {attempt.where()}",
                        resume_after="",
                    ) from failure.cause
                logger.warning("%s: node lost; restarting (not counted as an attempt): %s", attempt.name, what)
                self._telemetry.retried(1)
                attempt.forget()
                time.sleep(LISTEN_S)
                continue
            if failure.kind is FailureKind.OTHER or (failure.kind is FailureKind.RAISED and not failure.by_environment):
                raise JobError(f"{attempt.name}: {what}", resume_after="") from failure.cause
            attempt.forget()
            tries += 1
            causes.add(repr(failure.cause) if failure.by_environment else what)
            if tries == max_attempts:
                raise abandoned_error(attempt.name, tries, what, causes) from failure.cause
            logger.warning("%s, try %d of %d: %s", attempt.name, tries, max_attempts, what)
            self._telemetry.retried(1)

    def _require_end(self, attempt: TaskTry, timeout_s: float) -> None:
        """End the process of a task that hangs.

        Raises:
            JobError: The process cannot be ended.
        """
        if not attempt.end():
            raise JobError(
                f"{attempt.name} gave no sign of life for {timeout_s:g} s, and its process cannot be ended. A "
                f"second process would write the same files. {attempt.where()}",
                resume_after="end the process",
            )

    @contextmanager
    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, jobs_per_worker: int = 1
    ) -> Iterator[Pool]:
        """See ``pipeline.execution.protocol.Executor.pool``."""
        pool = RayPool(
            factory,
            arguments,
            execution=self._execution,
            telemetry=self._telemetry,
            placement=None if self._local else Placement(self._execution),
            max_workers=self._max_workers,
            jobs_at_once=jobs_at_once,
            jobs_per_worker=jobs_per_worker,
        )
        try:
            yield pool
        finally:
            pool.close()

    def publish(self, stage: str, metrics: Metrics) -> None:
        """See ``pipeline.execution.protocol.Executor.publish``."""
        self._telemetry.publish(stage, metrics)

    def _lost_with_node(self, failure: Failure, lost: TaskTry) -> bool:
        """Whether a task was lost because its node was."""
        if failure.kind is FailureKind.NODE_LOST:
            return True
        # Without a cause the task ended by itself.
        died = failure.kind is FailureKind.WORKER_LOST and failure.cause is not None
        return died and not self._local and lost.lost_its_node()

    def close(self) -> None:
        """Leave the cluster if this executor joined it; stop a local Ray if this executor started it."""
        if self._owns_ray:
            ray.shutdown()
