"""The executor on Ray: the one this process is in already, a cluster that is named, or a local one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from actors.identity import WorkerIdentity, session_logs
from actors.pool import RayPool
from actors.worker import as_ours, run_task
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, JobError
from pipeline.executor import Pool, Resources, Worker
from pipeline.machine import num_cores
from pipeline.progress import Update

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class RayExecutor:
    """Tasks and pools on Ray. See ``pipeline.executor.Executor``.

    Args:
        config: the run's; ``execution`` says where, and the training stages how many CPUs one task needs at least.

    Raises:
        ConfigError: a cluster was named and does not answer, or no node of it can hold the largest task.
    """

    def __init__(self, config: RunConfig) -> None:
        self._execution = config.execution
        self._owns_ray = not ray.is_initialized()
        self._local = False
        if self._owns_ray:
            self._connect(config)
        threads = max(config.vae.threads, config.mdnrnn.threads)
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if threads > largest:
            self.close()
            raise ConfigError(
                f"vae.threads or mdnrnn.threads asks for {threads} CPUs on one node, and the largest node has "
                f"{largest:g}: lower them (in a new --run-dir, their number changes bits) or add a larger node"
            )
        resources = ray.cluster_resources()
        self.num_gpus = int(resources.get("GPU", 0))
        cpus = max(1, int(resources.get("CPU", 1)))
        if self._local:
            cpus = min(cpus, num_cores())  # training may have been given more CPUs than there are cores
        self.max_workers = config.execution.workers or cpus

    def _connect(self, config: RunConfig) -> None:
        address = config.execution.ray_address or os.environ.get("RAY_ADDRESS")
        if address:
            try:
                ray.init(address=address, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise ConfigError(
                    f"no Ray cluster answers at {address} ({error}). Start one with `ray start --head`, unset "
                    "RAY_ADDRESS, or leave execution.ray_address null for a local Ray"
                ) from error
        else:
            # For this run alone: on loopback (cli.py prepares that before Ray is imported), no dashboard.
            logger.info("starting a local Ray")
            self._local = True
            ray.init(
                address="local",
                num_cpus=max(num_cores(), config.vae.threads, config.mdnrnn.threads, config.execution.workers or 1),
                include_dashboard=False,
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
            )

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """See ``pipeline.executor.Executor.run``; a task whose worker dies is begun again and resumes by itself."""
        name = task.__module__.rpartition(".")[2]
        for attempt in range(1, self._execution.max_attempts + 1):
            updates = run_task.options(
                num_cpus=resources.threads, num_gpus=resources.gpus, num_returns="streaming", name=name
            ).remote(task, arguments, resources.threads)
            worker: WorkerIdentity | None = None
            try:
                for reference in updates:
                    kind, value = ray.get(reference)
                    if kind == "worker":
                        worker = value
                        worker.check(exact=self._execution.exact)
                    elif kind == "update":
                        on_update(value)
                    else:
                        return value  # type: ignore[no-any-return]
            except RayTaskError as error:
                raise as_ours(error, name, _where(worker)) from error
            except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
                logger.warning(
                    "%s: its worker died (attempt %d of %d): %s; %s",
                    name, attempt, self._execution.max_attempts, error, _where(worker),
                )  # fmt: skip
            except BaseException:
                # Refused or interrupted: it must not go on writing behind the driver's back.
                ray.cancel(updates, force=True)
                raise
        raise JobError(
            f"{name}: its worker died {self._execution.max_attempts} times; {_where(worker)}. What was checkpointed "
            "is kept; run the same command again to go on."
        )

    @contextmanager
    def pool(self, factory: Callable[..., Worker], *arguments: Any, jobs_per_call: int) -> Iterator[Pool]:
        """See ``pipeline.executor.Executor.pool``."""
        pool = RayPool(
            factory,
            arguments,
            num_workers=self.max_workers,
            jobs_per_call=jobs_per_call,
            max_attempts=self._execution.max_attempts,
            exact=self._execution.exact,
        )
        try:
            yield pool
        finally:
            pool.close()

    def close(self) -> None:
        """Leave the cluster, if this executor joined it; a local Ray that it started ends."""
        if self._owns_ray:
            ray.shutdown()


def _where(worker: WorkerIdentity | None) -> str:
    return worker.log_location() if worker is not None else f"logs of this node's workers: {session_logs()}"
