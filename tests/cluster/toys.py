"""Small workers and tasks that test the executor's contract. They are in a module that Ray's workers can import."""

from __future__ import annotations

import importlib
import math
import os
import signal
import time
from collections.abc import Generator, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray

from pipeline.base.errors import DamagedDataError, EpisodeError
from pipeline.base.machine import process_started
from pipeline.base.progress import Update


@dataclass(frozen=True)
class Number:
    id: int


class Squares:
    """Squares numbers, the larger ones first. Notes each job that it ran in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in reversed(list(jobs)):
            time.sleep(0.002 * (job.id % 5))
            (self._folder / f"{job.id}-{os.getpid()}-{time.monotonic_ns()}").touch()
            yield job.id, job.id**2


@dataclass(frozen=True)
class Labelled(Number):
    """A number with a label. Two with the same number have the same ID."""

    label: str


class Labels:
    """Returns the labels of its jobs, in order."""

    def run(self, jobs: Iterable[Labelled]) -> Iterator[tuple[int, str]]:
        for job in jobs:
            yield job.id, job.label


class Damaged:
    """Raises ``DamagedDataError`` on one job. Notes each try."""

    def __init__(self, bad: int, folder: str) -> None:
        self._bad, self._folder = bad, Path(folder)

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            if job.id == self._bad:
                (self._folder / f"try-{uuid4()}").touch()
                raise DamagedDataError("shard-00007 is damaged")
            yield job.id, job.id


def wait_for(file: Path) -> None:
    """Wait until a file exists."""
    while not file.exists():
        time.sleep(0.01)


def use_up_fault(folder: Path, job: int | None = None) -> bool:
    """Remove one fault (of this job) from a folder; returns whether there was one."""
    for fault in sorted(folder.glob("fault-*" if job is None else f"fault-{job}-*"))[:1]:
        fault.unlink()
        return True
    return False


def hang(folder: Path, *, stopped: bool = False) -> None:
    """Note that this process hangs, then sleep or stop it."""
    (folder / f"hung-{os.getpid()}").touch()
    if stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def hung_processes(folder: Path) -> set[int]:
    """The ids of the processes that have noted that they hang."""
    return {int(note.name.removeprefix("hung-")) for note in folder.glob("hung-*")}


class Raising:
    """Raises on a job once per fault in a folder; the error names the job or not. Notes its own construction."""

    def __init__(self, folder: str, named: bool) -> None:
        self._folder, self._named = Path(folder), named
        (self._folder / f"made-{uuid4()}").touch()

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            if use_up_fault(self._folder, job.id):
                if self._named:
                    raise EpisodeError(f"the environment of {job.id} divided by zero", job.id)
                raise ZeroDivisionError("the environment divided by zero")
            yield job.id, job.id**2


class Dying:
    """Kills its own process on one job, once per fault in a folder.

    Before that, it waits for the arrival of its earlier results: the driver notes each one, see ``arriving``.
    """

    def __init__(self, bad: int, folder: str) -> None:
        self._bad, self._folder = bad, Path(folder)

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        given: list[int] = []
        for job in jobs:
            if job.id == self._bad and use_up_fault(self._folder):
                for number in given:
                    wait_for(self._folder / f"arrived-{number}")
                os.kill(os.getpid(), signal.SIGKILL)
            yield job.id, job.id**2
            given.append(job.id)


def arriving(results: Iterable[tuple[Hashable, Any]], folder: Path) -> Iterator[tuple[Hashable, Any]]:
    """Yield results, and note each one in a folder."""
    for job_id, result in results:
        (folder / f"arrived-{job_id}").touch()
        yield job_id, result


class Hanging:
    """Hangs on one job or after the last job, once per fault in a folder. Notes its process id."""

    def __init__(self, bad: int, folder: str, how: str) -> None:
        self._bad, self._folder, self._how = bad, Path(folder), how

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            if job.id == self._bad and self._how != "at the end":
                self._hang()
            yield job.id, job.id**2
        if self._how == "at the end":
            self._hang()

    def _hang(self) -> None:
        if use_up_fault(self._folder):
            hang(self._folder, stopped=self._how == "stopped")


class Paced:
    """Begins each job after the arrival of the result before it, see ``arriving``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            yield job.id, job.id**2
            wait_for(self._folder / f"arrived-{job.id}")


class Threads:
    """Imports torch, sets it to three threads, and returns the number of threads during its jobs."""

    def __init__(self) -> None:
        self._torch = importlib.import_module("torch")
        self._torch.set_num_threads(3)

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            yield job.id, self._torch.get_num_threads()


class OneSlow:
    """Squares numbers. The process that creates the file ``slow`` first is slower than the others by a factor.

    With an infinite factor, it waits for a file. The others begin after the slow one. Notes each job that it begins.
    """

    def __init__(self, folder: str, seconds_a_job: float, slowness: float) -> None:
        self._folder, self._seconds = Path(folder), seconds_a_job
        self._slow = False
        with suppress(FileExistsError), (self._folder / "slow").open("x") as mine:
            mine.write(str(os.getpid()))
            self._slow = True
            self._seconds *= slowness

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            (self._folder / f"begun-{job.id}-{uuid4()}").touch()
            if self._slow:
                (self._folder / "slow-began").touch()
            wait_for(self._folder / "slow-began")
            if self._seconds == math.inf:
                wait_for(self._folder / "go")
            else:
                time.sleep(self._seconds)
            yield job.id, job.id**2


class Noting:
    """Squares numbers slowly, and pauses while a file exists. Notes when and where it begins each job."""

    def __init__(self, folder: str, seconds_a_job: float) -> None:
        self._folder, self._seconds = Path(folder), seconds_a_job

    def run(self, jobs: Iterable[Number]) -> Iterator[tuple[int, int]]:
        for job in jobs:
            note_begun(self._folder, job.id)
            while (self._folder / "closed").exists():
                time.sleep(0.01)
            time.sleep(self._seconds)
            yield job.id, job.id**2


@dataclass(frozen=True)
class Begun:
    """A note that something began: which job, on which node, when (seconds since the epoch)."""

    job: int
    node_id: str
    at: float


def note_begun(folder: Path, job: int) -> None:
    (folder / f"begun-{job}-{ray.get_runtime_context().get_node_id()}-{time.time()}-{uuid4()}").touch()


def all_begun(folder: Path) -> list[Begun]:
    """The notes of a folder, the oldest first."""
    parts = [path.name.split("-") for path in folder.glob("begun-*")]
    return sorted((Begun(int(job), node, float(at)) for _, job, node, at, *_ in parts), key=lambda begun: begun.at)


def counting_task(count: int) -> Generator[Update, None, str]:
    for done in range(1, count + 1):
        yield Update(done, count)
    return f"counted to {count}"


def failing_task() -> Generator[Update, None, str]:
    yield Update(1, 2)
    raise ZeroDivisionError("the loss divided by zero")


def noting_task(folder: str) -> Generator[Update, None, str]:
    """Note its node, and wait for a file."""
    note_begun(Path(folder), 0)
    yield Update(1, 2)
    while not (Path(folder) / "go").exists():
        time.sleep(0.1)
    return "gone through"


def faulty_task(folder: str, how: str) -> Generator[Update, None, int]:
    """Die, hang or raise once per fault in a folder, then return the number of starts.

    Notes it if a process of an earlier, hanging try still exists.
    """
    path = Path(folder)
    (path / f"begun-{uuid4()}").touch()
    if any(process_started(pid) is not None for pid in hung_processes(path)):
        (path / f"beside-{uuid4()}").touch()
    if how == "dies at once" and use_up_fault(path):
        os.kill(os.getpid(), signal.SIGKILL)
    yield Update(1, 2)
    if use_up_fault(path):
        if how == "raises":
            raise EpisodeError("the environment of the film divided by zero", 5)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        hang(path, stopped=how == "stops")
    return len(list(path.glob("begun-*")))
