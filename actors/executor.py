"""The executor on Ray: the one this process is in already, a cluster that is named, or a local one of its own."""

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
from actors.listening import LISTEN_S, LOST, silence
from actors.nodes import nodes, sharing_a_folder
from actors.placement import Placement
from actors.pool import RayPool
from actors.task import Silent, TaskTry
from actors.telemetry import Telemetry
from actors.worker import not_to_be_retried
from pipeline.base.errors import ConfigError, EpisodeError, JobError
from pipeline.base.machine import num_cores
from pipeline.base.progress import Metrics, Update
from pipeline.config.schema import RunConfig
from pipeline.execution.jobs import cause_of, gave_up
from pipeline.execution.protocol import Pool, Resources, Worker

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_MOST_NODES = 10  # that one task is lost with


class RayExecutor:
    """Tasks and pools on Ray. See ``pipeline.execution.protocol.Executor``.

    Args:
        config: the run's; ``execution`` says where, the training stages how many CPUs a local Ray must have.

    Raises:
        ConfigError: a cluster was named and cannot be joined, or nodes of it share a folder.
        ClusterError: no local Ray comes up.
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
                f"{shared[0]} on one machine is the folder of several nodes. Each unpacks this job's sources there, "
                "and so deletes those that the others are running. Start every further node of a machine with a folder "
                "of its own, `ray start --temp-dir=/tmp/ray-2 ...`, or run without a job, where the sources are: "
                "RAY_ADDRESS=HOST:PORT world-models run ..."
            )
        self.can_grow = not self._local
        self.num_gpus = int(max((node.num_gpus for node in nodes() if node.alive), default=0.0))
        # A local Ray may have been given more CPUs for training than there are cores. On a cluster, workers are as many
        # as are worthwhile: it may grow.
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

        A task whose worker dies or hangs, or in which an environment raised, is begun again and resumes by itself. To
        be lost with its node costs it no try, but there is an end to that, too.
        """
        driver = WorkerIdentity.of_this_process()
        check = partial(WorkerIdentity.check, driver=driver, exact=self._execution.exact, on_gpu=resources.gpus > 0)
        max_attempts, timeout_s = self._execution.max_attempts, self._execution.timeout_s
        tries = nodes_lost = 0
        causes: set[str] = set()
        while True:
            this = TaskTry(task, arguments, resources=resources, check=check, timeout_s=timeout_s)
            what, cause = "it ended without a result", cast(BaseException | None, None)
            try:
                for kind, value in this.messages():
                    if kind == "result":
                        this.forget()
                        return value  # type: ignore[no-any-return]
                    if kind == "update":
                        on_update(value)
                    elif not self._local and (worker := this.worker) is not None:
                        worker.warn_if_starved(driver)
            except RayTaskError as error:
                ours = not_to_be_retried(error)
                if ours is not None:
                    raise ours from error
                what, cause = cause_of(error.cause), error.cause
                if not isinstance(cause, EpisodeError):
                    raise JobError(f"{this.name} failed: {cause!r}; {this.where()}") from error
            except LOST as error:
                if self._is_of_a_lost_node(error, this):
                    nodes_lost += 1
                    if this.worker is not None:  # or it was sent to a node whose loss Ray had not noticed yet
                        self._telemetry.lost_worker(preempted=True)
                    if nodes_lost == _MOST_NODES:
                        raise JobError(
                            f"{this.name} was lost with its node {nodes_lost} times: look whether it is what ends "
                            f"them, for want of memory for example. {this.where()}. What is committed is kept: the "
                            "same command goes on."
                        ) from error
                    logger.warning(
                        "%s is lost with its node and begun again, which costs it no try: %s", this.name, error
                    )
                    self._telemetry.retried(1)
                    this.forget()
                    time.sleep(LISTEN_S)
                    continue
                what, cause = f"its worker died: {error}", error
            except RayError as error:
                raise JobError(
                    f"{this.name} failed on Ray: {error}; {this.where()}. What is committed is kept: the same command "
                    "goes on."
                ) from error
            except Silent:
                what = silence(timeout_s)
                if not this.end():
                    raise JobError(
                        f"{this.name} gave no sign of life for {timeout_s:g} s, and its process cannot be ended: a "
                        f"second one beside it would write the same files. {this.where()}. End it, then run the same "
                        "command again: what is committed is kept."
                    ) from None
            except BaseException:
                # Refused or interrupted: it must not go on writing behind the driver's back.
                this.cancel()
                raise
            what = f"{what}; {this.where()}"
            this.forget()
            tries += 1
            causes.add(repr(cause) if isinstance(cause, EpisodeError) else what)
            if tries == max_attempts:
                raise JobError(f"{this.name} {gave_up(tries, what, causes)}") from cause
            logger.warning("%s, try %d of %d: %s", this.name, tries, max_attempts, what)
            self._telemetry.retried(1)

    @contextmanager
    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, worthwhile: int = 1
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
            worthwhile=worthwhile,
        )
        try:
            yield pool
        finally:
            pool.close()

    def publish(self, stage: str, metrics: Metrics) -> None:
        """See ``pipeline.execution.protocol.Executor.publish``."""
        self._telemetry.publish(stage, metrics)

    def _is_of_a_lost_node(self, error: Exception, lost: TaskTry) -> bool:
        """Whether a task's machine was taken away: not its own fault."""
        if isinstance(error, NodeDiedError):
            return True
        return not (self._local or isinstance(error, OutOfMemoryError)) and lost.lost_its_node()

    def close(self) -> None:
        """Leave the cluster, if this executor joined it; a local Ray that it started ends."""
        if self._owns_ray:
            ray.shutdown()
