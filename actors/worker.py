"""The remote shells: an actor around a plain worker, a task around a plain generator function."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.executor import Worker
from pipeline.identity import code_version, cpu_kind
from pipeline.logs import configure_logging
from pipeline.progress import Update
from pipeline.threads import num_threads


@dataclass(frozen=True)
class WorkerIdentity:
    """Who answers for an actor: where it runs, and what its bits depend on."""

    host: str
    pid: int
    cpu_kind: str
    code_version: str


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One worker on one CPU, one thread."""

    def __init__(self, factory: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
        configure_logging()
        with num_threads(1):
            self._worker = factory(*arguments)

    def identity(self) -> WorkerIdentity:
        """Answers once the worker is built."""
        return WorkerIdentity(socket.gethostname(), os.getpid(), cpu_kind(), code_version())

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[Hashable, Any]]:
        """``Worker.run``, each result on its way as soon as it is there."""
        with num_threads(1):
            yield from self._worker.run(jobs)


@ray.remote(max_retries=0)
def run_task(
    task: Callable[..., Generator[Update, None, Any]], arguments: tuple[Any, ...], threads: int
) -> Iterator[tuple[str, Any]]:
    """A task's updates as ``("update", ...)``, then ``("result", ...)``."""
    configure_logging()
    with num_threads(threads):
        updates = task(*arguments)
        while True:
            try:
                yield "update", next(updates)
            except StopIteration as end:
                yield "result", end.value
                return
