"""Small workers and tasks to test the executor's contract with; a module, so that Ray's workers can import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DamagedDataError
from pipeline.progress import Update


@dataclass(frozen=True)
class Number:
    id: int


class Squares:
    """Squares numbers, the larger ones sooner; notes each job it ran in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def run(self, jobs: Sequence[Number]) -> Iterator[tuple[int, int]]:
        for job in reversed(jobs):
            time.sleep(0.002 * (job.id % 5))
            (self._folder / f"{job.id}-{os.getpid()}-{time.monotonic_ns()}").touch()
            yield job.id, job.id**2


class Failing:
    """Fails on one job, in the way asked for."""

    def __init__(self, bad: int, how: str) -> None:
        self._bad, self._how = bad, how

    def run(self, jobs: Sequence[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            if job.id == self._bad:
                if self._how == "ours":
                    raise DamagedDataError("shard-00007 is damaged")
                raise ZeroDivisionError("the environment divided by zero")
            yield job.id, job.id


class Dying:
    """Kills its own process on one job, as often as there are lives in a folder, after finishing what came before."""

    def __init__(self, bad: int, folder: str) -> None:
        self._bad, self._folder = bad, Path(folder)

    def run(self, jobs: Sequence[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            if job.id == self._bad:
                for life in sorted(self._folder.glob("life-*"))[:1]:
                    life.unlink()
                    time.sleep(0.3)  # lets what was yielded arrive
                    os.kill(os.getpid(), signal.SIGKILL)
            yield job.id, job.id**2


def counting_task(count: int) -> Generator[Update, None, str]:
    for done in range(1, count + 1):
        yield Update(done, count)
    return f"counted to {count}"


def failing_task() -> Generator[Update, None, str]:
    yield Update(1, 2)
    raise ZeroDivisionError("the loss divided by zero")


def dying_task(folder: str) -> Generator[Update, None, int]:
    """Dies once for each life in a folder, then returns how often it was begun."""
    path = Path(folder)
    (path / f"begun-{os.getpid()}").touch()
    yield Update(1, 2)
    for life in sorted(path.glob("life-*"))[:1]:
        life.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return len(list(path.glob("begun-*")))
