"""Clocks for tests: a hanging process counts as silent at once, however fast the machine is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors import task as task_module
from actors.listening import listen
from actors.pool import RayPool
from pipeline.base.machine import process_started
from pipeline.execution import jobs as jobs_module
from pipeline.execution import scheduler as scheduler_module
from tests.cluster.toys import hung_processes

_LONG_S = 1e6  # beyond any execution.timeout_s


@contextmanager
def hanging_counts_as_silent(hung: Path | Callable[[], Collection[int]], for_s: float = _LONG_S) -> Iterator[None]:
    """Make the drivers of this process see a hanging process as silent for days, and all others as alive.

    ``execution.timeout_s`` can then be long enough for any machine, and no test waits for it.

    Args:
        hung: The folder in which hanging processes note themselves, see ``tests.cluster.toys.hang``, or a function
            that returns their ids.
        for_s: Seconds of silence.
    """

    def living() -> set[int]:
        found = hung_processes(hung) if isinstance(hung, Path) else hung()
        return {pid for pid in found if process_started(pid) is not None}

    maintain = RayPool._maintain

    def maintain_later(pool: RayPool) -> None:
        hanging = living()
        for worker in pool._workers:
            if worker.identity is not None and worker.identity.pid in hanging:
                worker.heard_at = pool._clock - for_s
        maintain(pool)

    def listen_longer(waitables: Any) -> tuple[Any, float]:
        ready, listened_s = listen(waitables)
        return ready, for_s if ready is None and living() else listened_s

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayPool, "_maintain", maintain_later)
        patch.setattr(task_module, "listen", listen_longer)
        yield


@contextmanager
def no_copies() -> Iterator[None]:
    """Let no worker count as slow, also in giving jobs back, and none as lost before Ray reports its death.

    A stalling machine then changes no count of tries.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs_module, "_SLOW_AFTER", 1e9)
        patch.setattr(scheduler_module, "_RECALL_S", 300.0)
        patch.setattr(scheduler_module, "_UNREACHABLE_S", 1e9)
        yield
