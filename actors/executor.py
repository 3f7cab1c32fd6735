"""The executor on Ray: the Ray that this process has joined already, a named cluster, or a local Ray of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError

from actors.connection import connect
from actors.identity import WorkerIdentity
from actors.listening import LISTEN_S, WORKER_LOST_ERRORS, silence_message
from actors.nodes import nodes, sharing_a_folder
from actors.placement import Placement
from actors.pool import RayPool
from actors.task import Silent, TaskTry
from actors.telemetry import Telemetry
from actors.worker import as_fatal_error
from pipeline.base.errors import ConfigError, EpisodeError, JobError
from pipeline.base.machine import num_cores
from pipeline.base.progress import Metrics, Update
from pipeline.config.schema import RunConfig
from pipeline.execution.jobs import cause_message, gave_up_message
from pipeline.execution.protocol import Pool, Resources, Worker

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_MAX_LOST_NODES = 10  # after which a task that was lost with each of them is abandoned


class RayExecutor:
    """Tasks and pools on Ray. See ``pipeline.execution.protocol.Executor``.

    Args:
        config: Config of the run. ``execution`` names the cluster; the training stages set the CPUs of a local Ray.

    Raises:
        ConfigError: The named cluster cannot be joined, or several of its nodes share a folder.
        ClusterError: No local Ray starts.
    """

    def __init__(self, config: RunConfig) -> None:
        self._execution = config.execution
        self._owns_ray = not ray.is_initialized()
        self._local = False
        if self._owns_ray:
            self._local = connect(config)
        if "working_dir" in ray.get_runtime_context().runtime_env and (shared := sharing_a_folder()):
            self.close()
            raise ConfigError(
                f"{shared[0]} on one machine is the folder of several nodes. Each node unpacks this job's sources "
                "there and deletes the ones that the others are running. Start each further node of a machine with its "
                "own folder, `ray start --temp-dir=/tmp/ray-2 ...`, or run in the folder of the sources without a job: "
                "RAY_ADDRESS=HOST:PORT world-models run ..."
            )
        self.can_grow = not self._local
        self.has_gpu = any(node.num_gpus > 0 for node in nodes() if node.alive)
        # A local Ray may have more CPUs (for training) than there are cores. A cluster may grow, so that only the jobs
        # limit the number of workers.
        self._max_workers = config.execution.workers or (num_cores() if self._local else None)
        self._telemetry = Telemetry(config.name)

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
            what, cause = "it ended without a result", cast(BaseException | None, None)
            try:
                for kind, value in attempt.messages():
                    if kind == "result":
                        attempt.forget()
                        return value  # type: ignore[no-any-return]
                    if kind == "update":
                        on_update(value)
                    elif not self._local and (worker := attempt.worker) is not None:
                        worker.warn_if_starved(driver)
            except RayTaskError as error:
                fatal = as_fatal_error(error)
                if fatal is not None:
                    raise fatal from error
                what, cause = cause_message(error.cause), error.cause
                if not isinstance(cause, EpisodeError):
                    raise JobError(f"{attempt.name} failed: {cause!r}; {attempt.where()}") from error
            except WORKER_LOST_ERRORS as error:
                if self._is_of_a_lost_node(error, attempt):
                    nodes_lost += 1
                    if attempt.worker is not None:  # else it was sent to a node whose loss Ray had not noticed yet
                        self._telemetry.lost_worker(preempted=True)
                    if nodes_lost == _MAX_LOST_NODES:
                        raise JobError(
                            f"{attempt.name} was lost with its node {nodes_lost} times. Check whether this task is "
                            f"killing the nodes, for example by running out of memory. {attempt.where()}. Completed "
                            "work is saved; the same command resumes."
                        ) from error
                    logger.warning("%s: node lost; restarting (not counted as an attempt): %s", attempt.name, error)
                    self._telemetry.retried(1)
                    attempt.forget()
                    time.sleep(LISTEN_S)
                    continue
                what, cause = f"its worker died: {error}", error
            except RayError as error:
                raise JobError(
                    f"{attempt.name} failed on Ray: {error}; {attempt.where()}. Completed work is saved; the same "
                    "command resumes."
                ) from error
            except Silent:
                what = silence_message(timeout_s)
                if not attempt.end():
                    raise JobError(
                        f"{attempt.name} gave no sign of life for {timeout_s:g} s, and its process cannot be ended. A "
                        f"second process would write the same files. {attempt.where()}. End the process, then run the "
                        "same command again to resume. Completed work is saved."
                    ) from None
            except BaseException:
                # Refused or interrupted: the task must not continue to write without its driver.
                attempt.cancel()
                raise
            what = f"{what}; {attempt.where()}"
            attempt.forget()
            tries += 1
            causes.add(repr(cause) if isinstance(cause, EpisodeError) else what)
            if tries == max_attempts:
                raise JobError(f"{attempt.name} {gave_up_message(tries, what, causes)}") from cause
            logger.warning("%s, try %d of %d: %s", attempt.name, tries, max_attempts, what)
            self._telemetry.retried(1)

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

    def _is_of_a_lost_node(self, error: Exception, lost: TaskTry) -> bool:
        """Whether a task was lost because its node was."""
        if isinstance(error, NodeDiedError):
            return True
        return not (self._local or isinstance(error, OutOfMemoryError)) and lost.lost_its_node()

    def close(self) -> None:
        """Leave the cluster if this executor joined it; stop a local Ray if this executor started it."""
        if self._owns_ray:
            ray.shutdown()
