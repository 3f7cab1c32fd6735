"""Time as a test wants it: what hangs has been silent for long, the moment it hangs, however fast the machine is."""

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
from pipeline.execution import scheduler as scheduler_module
from tests.cluster.toys import hung_processes

_LONG_S = 1e6  # beyond any execution.timeout_s


@contextmanager
def silent_once_they_hang(hung: Path | Callable[[], Collection[int]], for_s: float = _LONG_S) -> Iterator[None]:
    """Processes that hang have given no sign of life for days, as drivers of this process see it; all others have.

    So ``execution.timeout_s`` can be long enough for any machine, and nobody waits for it.

    Args:
        hung: The folder in which they note it, see ``tests.cluster.toys.hang``, or the ids of those that do.
        for_s: Seconds that they have been silent for.
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
    """No worker is ever too slow, and none too slow to say which jobs it can give back: a machine which stalls for a
    while changes no count of tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "_SLOW_AFTER", 1e9)
        patch.setattr(scheduler_module, "_RECALL_S", 300.0)
        yield
