"""An evolution on a cluster of several nodes, with an event in the middle of a generation."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors import listening
from actors import task as task_module
from actors.executor import RayExecutor
from actors.nodes import drain, nodes, was_lost
from actors.worker_identity import WorkerIdentity
from pipeline.config.schema import RunConfig
from pipeline.execution import node_watch
from pipeline.execution import scheduler as scheduler_module
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Resources
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import require_manifest
from tests.cluster import many_nodes
from tests.cluster.clocks import no_copies
from tests.cluster.gated import ENV_ID, gate, gates_folder, open_all_gates
from tests.cluster.toys import Noting, Number, all_begun, noting_task
from tests.counting import counting_config

BEFORE_EVOLVE, EVOLVE, EVALUATE = STAGES[:4], STAGES[4:5], STAGES[5:6]
POPULATION, EPISODES, GENERATIONS = 6, 4, 4


def config(**overrides: Any) -> RunConfig:
    return counting_config(
        {
            "env.id": ENV_ID,
            "rollouts.micro_batch": 2,
            "rollouts.lanes": 2,
            "evolve.population_size": POPULATION,
            "evolve.episodes": EPISODES,
            "evolve.generations": GENERATIONS,
            "execution.executor": "ray",
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
    )


class _Pool:
    """A pool that calls a function before each ``map`` of jobs, and another one every second during it."""

    def __init__(self, pool: Any, before: Callable[[Any], None], meanwhile: Callable[[Any], None]) -> None:
        self._pool, self._before = pool, before
        maintain = pool._maintain

        def maintain_and_look() -> None:
            meanwhile(pool)
            maintain()

        pool._maintain = maintain_and_look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def map(self, jobs: Any) -> Iterator[Any]:
        jobs = list(jobs)
        if jobs:
            self._before(self._pool)
        return self._pool.map(jobs)  # type: ignore[no-any-return]


class _Executor(RayExecutor):
    """``RayExecutor`` with an event in the evolution. Notes the state of the pool just before its end.

    The event comes in the second generation, whose episodes pause until it is over. It therefore hits workers with
    running episodes, and its effect on the cluster precedes the end of the evolution, however fast the machine is.
    """

    def __init__(self, config: RunConfig, what: str, workers: int) -> None:
        super().__init__(config.execution)
        self._workers = workers
        happenings: dict[str, tuple[Callable[[Any], None], Callable[[Any], bool]]] = {
            "nothing": (lambda _: None, lambda _: True),
            "be many": (lambda _: None, self._are_many),
            "crash": (self._crash, self._is_known_to_be_gone),
            "drain": (self._drain, self._has_left),
            "join": (self._join, self._has_workers),
            "lose the head": (self._lose_the_head, lambda _: True),
        }
        self._act, self._has_come_about = happenings[what]
        self._maps, self._acted = 0, False
        open_all_gates()
        self.noted: dict[str, Any] = {"preempted": note_preempted(self)}

    @contextmanager
    def pool(self, *arguments: Any, **named: Any) -> Iterator[Any]:
        with super().pool(*arguments, **named) as pool:
            yield _Pool(pool, self._before, self._meanwhile) if "on" not in self.noted else pool
            self.noted.setdefault("on", sorted({worker.identity.node_id for worker in _up(pool)}))
            self.noted.setdefault("lost_workers", pool.lost_workers)  # type: ignore[attr-defined]

    def _before(self, pool: Any) -> None:
        self._maps += 1
        if self._maps == 2:
            gate(gates_folder()).touch()

    def _meanwhile(self, pool: Any) -> None:
        if self._maps == 2 and not self._acted and self._blocked():
            self._act(pool)
            self._acted = True
        if self._acted and self._has_come_about(pool):
            open_all_gates()

    def _blocked(self) -> list[str]:
        """The nodes of workers that pause in an episode."""
        return [note.name.split("@")[1] for note in gates_folder().glob("blocked@*")]

    def _open_for(self, node_id: str | None) -> None:
        """Resume only the workers of one node, or with None only those of future nodes."""
        for node in nodes():
            if node.id != node_id:
                gate(gates_folder(), node.id).touch()
        gate(gates_folder()).unlink()

    def _are_many(self, pool: Any) -> bool:
        return len(_up(pool)) >= self._workers

    def _crash(self, pool: Any) -> None:
        self.noted["hit"] = self._blocked()[0]
        many_nodes.kill_node(self.noted["hit"])
        self._open_for(None)  # no worker yet: the evolution continues after Ray has noticed

    def _is_known_to_be_gone(self, pool: Any) -> bool:
        return not any(node.id == self.noted["hit"] and node.alive for node in nodes())

    def _drain(self, pool: Any) -> None:
        self.noted["hit"] = self._blocked()[0]
        drain(self.noted["hit"], many_nodes.address(), reason="a test", deadline_s=time.time() + 1200)
        self._open_for(self.noted["hit"])

    def _has_left(self, pool: Any) -> bool:
        return self.noted["hit"] not in {worker.node_id for worker in pool._workers}

    def _join(self, pool: Any) -> None:
        self._open_for(None)
        self.noted["joined"] = many_nodes.add_node({"num_cpus": 2})

    def _has_workers(self, pool: Any) -> bool:
        return self.noted["joined"] in {worker.node_id for worker in _up(pool)}

    def _lose_the_head(self, pool: Any) -> None:
        """Kill the head together with this driver, as if the driver ran there."""
        os.kill(os.getpid(), signal.SIGKILL)


def note_preempted(executor: RayExecutor) -> list[bool]:
    """For each worker loss that an executor reports to its metrics from now on: whether it was a preemption."""
    losses: list[bool] = []
    executor._telemetry.lost_worker = lambda *, preempted: losses.append(preempted)  # type: ignore[method-assign]
    return losses


def evolve(folder: Path, what: str, workers: int = 0, **overrides: Any) -> dict[str, Any]:
    """Evolve on the cluster of this driver, and evaluate in-process.

    Args:
        folder: The run directory.
        what: The event in the second generation, see ``_Executor``.
        workers: The number of workers that must be up at the same time for the event "be many".
        overrides: Overrides of the config, with ``__`` for the dot of a key.

    Returns:
        The evolution's ``info``, and the executor's notes.
    """
    chosen = config(**overrides)
    executor = _Executor(chosen, what, workers)
    with no_copies(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_watch, "REPORT_S", 1e9)  # however long Ray takes to notice a crash
        run_stages(chosen, LocalStore(folder), executor, EVOLVE)
    run_stages(chosen, LocalStore(folder), InProcessExecutor(), EVALUATE)
    return {**require_manifest(LocalStore(folder), "evolution").info, **executor.noted}


def square_while_a_node_is_drained(folder: Path, *, as_if_many: bool) -> tuple[str, float]:
    """Square numbers on two nodes of two CPUs, one of which is drained in the middle.

    All workers pause before the drain, until the pool has recalled the queued jobs of that node.

    Args:
        folder: The folder in which the workers note the jobs that they begin.
        as_if_many: Whether results are batched, as with hundreds of workers.

    Returns:
        The node's id, and the time at which its workers resumed.
    """
    hit, resumed_at = "", 0.0

    def look(pool: Any) -> None:
        nonlocal hit, resumed_at
        if not (folder / "closed").exists() or resumed_at:
            return
        if not hit:
            hit = _busy_node(pool)
            drain(hit, many_nodes.address(), reason="a test", deadline_s=time.time() + 1200)
        there = [worker for worker in pool._workers if worker.node_id == hit]
        begun = {each.job for each in all_begun(folder)}
        if all(not worker.staying and begun.issuperset(worker.jobs) for worker in there):
            resumed_at = time.time()
            (folder / "closed").unlink()

    executor = RayExecutor(config().execution)
    with patched_to_many(as_if_many), executor.pool(Noting, str(folder), 0.02) as pool:
        watched = _Pool(pool, lambda _: None, look)
        results = {}
        for job_id, square in watched.map([Number(i) for i in range(100)]):
            results[job_id] = square
            if len(results) == 20:
                (folder / "closed").touch()
    assert results == {i: i * i for i in range(100)}
    return hit, resumed_at


def square_while_a_gpu_node_comes(folder: Path) -> tuple[str, bool]:
    """Square numbers on a node of two CPUs, with more workers than fit on it, until a node with a GPU joins.

    Returns:
        The GPU node's id, and whether workers were placed there and left it.
    """
    executor = RayExecutor(config().execution)
    came, squared = "", 0
    with executor.pool(Noting, str(folder), 0.1) as pool:
        while not pool._skipped_nodes:  # type: ignore[attr-defined]
            for job_id, square in pool.map([Number(i) for i in range(squared, squared + 20)]):
                assert isinstance(job_id, int) and square == job_id**2
            squared += 20
            came = came or many_nodes.add_node({"num_cpus": 2, "num_gpus": 1})
        avoided = pool._skipped_nodes == {came}  # type: ignore[attr-defined]
        list(pool.map([Number(i) for i in range(20)]))
    many_nodes.kill_node(came)
    wait_until_gone(came)
    return came, avoided


@contextmanager
def patched_to_many(as_if_many: bool, batching_delay_s: float = 1.0) -> Iterator[None]:
    """Make the pool batch results as with hundreds of workers, and let no worker count as slow.

    Args:
        as_if_many: Whether results are batched.
        batching_delay_s: Seconds for which a worker with jobs ahead keeps results.
    """
    with pytest.MonkeyPatch.context() as patch, no_copies():
        if as_if_many:
            patch.setattr(listening, "_FEW", 1)
            patch.setattr(scheduler_module, "_BATCHING_DELAY_S", batching_delay_s)
        yield


def run_while_its_node_is_lost(folder: Path, *, identified: bool) -> tuple[str, list[bool]]:
    """Run a task whose node is killed after it has begun there.

    Args:
        folder: The folder in which the task notes its start.
        identified: Whether the driver knows the task's node; otherwise it may have been lost before its start.

    Returns:
        The task's result, and whether each loss in the metrics was a preemption.
    """
    executor = RayExecutor(config(execution__max_attempts=1).execution)
    losses = note_preempted(executor)
    lost: list[str] = []

    def lose(_: object) -> None:
        first, *again = all_begun(folder)
        if again:
            (folder / "go").touch()
        elif not lost:
            lost.append(first.node_id)
            many_nodes.kill_node(first.node_id)

    with pytest.MonkeyPatch.context() as patch:
        # However long Ray takes to notice the loss.
        patch.setattr(task_module, "was_lost", lambda look, timeout_s=1e9: was_lost(look, 1e9))
        if not identified:
            patch.setattr(WorkerIdentity, "announced", lambda _: None)
        return executor.run(noting_task, str(folder), resources=Resources(), on_update=lose), losses


def square_at_low_priority(folder: Path, other: Path) -> list[str]:
    """The warnings of the driver while it squares numbers in a worker of a cluster, twice."""
    with listened_to("actors.worker_identity") as warnings:
        for place in (folder, other):
            with RayExecutor(config().execution).pool(Noting, str(place), 0.0) as pool:
                list(pool.map([Number(1)]))
    return warnings


@contextmanager
def listened_to(name: str) -> Iterator[list[str]]:
    """Collect the messages of a logger."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(name).addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger(name).removeHandler(handler)


def wait_until_gone(node_id: str) -> None:
    """Wait until a node has left the cluster."""
    while any(node.id == node_id and node.alive for node in nodes()):
        time.sleep(0.1)


def _up(pool: Any) -> list[Any]:
    return [worker for worker in pool._workers if worker.built and not worker.unreachable]


def _busy_node(pool: Any) -> str:
    return next(str(worker.identity.node_id) for worker in _up(pool) if worker.jobs)
