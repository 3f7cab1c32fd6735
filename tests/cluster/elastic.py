"""An evolution on a cluster of several nodes, to which something happens in the middle of a generation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors import listening
from actors import pool as pool_module
from actors.executor import RayExecutor
from actors.nodes import drain, nodes
from pipeline.config import RunConfig
from pipeline.envs.environment import Step
from pipeline.executor import Resources
from pipeline.progress import Update
from pipeline.run import STAGES, run_stages
from pipeline.storage.manifest import require_manifest
from pipeline.storage.store import LocalStore
from tests.cluster import many_nodes
from tests.cluster.toys import Noting, Number, all_begun, noting_task
from tests.counting import CountingEnv, counting_config

BEFORE_EVOLVE, EVOLVE_AND_EVALUATE = STAGES[:4], STAGES[4:6]
POPULATION, EPISODES, GENERATIONS = 6, 4, 4
_IN_A_GENERATION = POPULATION * EPISODES


class SlowEnv(CountingEnv):
    """``CountingEnv`` whose steps take time, so that other workers get a share of the episodes."""

    def step(self, action: NDArray[np.float32]) -> Step:
        time.sleep(0.01)
        return super().step(action)


def config(**overrides: Any) -> RunConfig:
    return counting_config(
        {
            "env.id": "tests.cluster.elastic:SlowEnv",
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
    """A pool that calls functions once so many results are in, and takes its time over results while it is to wait."""

    def __init__(self, pool: Any, acts: Mapping[int, Callable[[Any], None]], wait: Callable[[Any], bool]) -> None:
        self._pool, self._acts, self._wait = pool, acts, wait
        self._results = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def map(self, jobs: Any) -> Iterator[Any]:
        for result in self._pool.map(jobs):
            yield result
            self._results += 1
            if self._results in self._acts:
                self._acts[self._results](self._pool)
            if self._wait(self._pool):
                time.sleep(0.2)


class _Executor(RayExecutor):
    """``RayExecutor`` whose evolution something happens to; notes what the pool was like just before its end."""

    def __init__(self, config: RunConfig, what: str) -> None:
        super().__init__(config)
        self._what = what
        self.noted: dict[str, Any] = {"preempted": note_preempted(self)}

    @contextmanager
    def pool(self, *arguments: Any, **named: Any) -> Iterator[Any]:
        with super().pool(*arguments, **named) as pool:
            # In the middle of the second generation, and of the third one, behind the validation of the second.
            acts = {_IN_A_GENERATION + 4: getattr(self, f"_{self._what}"), 2 * _IN_A_GENERATION + 8: self._look}
            yield _Pool(pool, acts, self._is_to_wait) if "on" not in self.noted else pool
            self.noted.setdefault("on", sorted({member.identity.node_id for member in _up(pool)}))
            self.noted.setdefault("lost_workers", pool.lost_workers)  # type: ignore[attr-defined]

    def _nothing(self, pool: Any) -> None:
        pass

    def _crash(self, pool: Any) -> None:
        """Of the node of whoever has most to do: that some of it is never answered is certain."""
        busiest = max(_up(pool), key=lambda member: len(member.jobs))
        self.noted["hit"] = busiest.identity.node_id
        many_nodes.kill_node(self.noted["hit"])

    def _is_to_wait(self, pool: Any) -> bool:
        """Until a node that joined has its workers up, which takes a busy machine seconds."""
        joined = self.noted.get("joined")
        return joined is not None and joined not in {member.identity.node_id for member in _up(pool)}

    def _look(self, pool: Any) -> None:
        """Until Ray has noticed a crash, which takes it seconds."""
        if self._what == "crash":
            wait_until_gone(self.noted["hit"])

    def _drain(self, pool: Any) -> None:
        self.noted["hit"] = _busy_node(pool)
        drain(self.noted["hit"], many_nodes.address(), reason="a test", deadline_s=time.time() + 120)

    def _join(self, pool: Any) -> None:
        self.noted["joined"] = many_nodes.add_node({"num_cpus": 2})

    def _lose_the_head(self, pool: Any) -> None:
        """And this driver with it, as where it runs there."""
        os.kill(os.getpid(), signal.SIGKILL)


def note_preempted(executor: RayExecutor) -> list[bool]:
    """For each worker that an executor tells its metrics of the loss of, from now on: whether it was preempted."""
    told: list[bool] = []
    executor._telemetry.lost_worker = lambda *, preempted: told.append(preempted)  # type: ignore[method-assign]
    return told


def evolve(folder: Path, what: str, **overrides: Any) -> dict[str, Any]:
    """Evolve and evaluate on the cluster of this driver; returns the evolution's facts and what was noted."""
    chosen = config(**overrides)
    executor = _Executor(chosen, what)
    with no_copies():
        run_stages(chosen, LocalStore(folder), executor, EVOLVE_AND_EVALUATE)
    return {**require_manifest(LocalStore(folder), "evolution").info, **executor.noted}


def square_while_a_node_is_drained(folder: Path, *, as_if_many: bool) -> tuple[str, float]:
    """Square numbers on two nodes of two CPUs, one of which is drained in the middle; which, and when.

    Args:
        folder: where the workers note what they begin.
        as_if_many: whether results wait for each other, as with hundreds of workers.
    """
    executor = RayExecutor(config())
    with patched_to_many(as_if_many), executor.pool(Noting, str(folder), 0.2) as pool:
        hit = ""
        results = {}
        for job_id, square in pool.map([Number(i) for i in range(100)]):
            results[job_id] = square
            if len(results) == 20:
                hit = _busy_node(pool)
                drain(hit, many_nodes.address(), reason="a test", deadline_s=time.time() + 120)
                at = time.time()
    assert results == {i: i * i for i in range(100)}
    return hit, at


def square_while_a_gpu_node_comes(folder: Path) -> tuple[str, bool]:
    """Square numbers on a node of two CPUs, with more workers asked for than it holds, until one with a GPU has come.

    Returns:
        The node's id, and whether workers were put there and left it.
    """
    executor = RayExecutor(config())
    came, squared = "", 0
    with executor.pool(Noting, str(folder), 0.1) as pool:
        while not pool._avoided and squared < 1000:  # type: ignore[attr-defined]
            for job_id, square in pool.map([Number(i) for i in range(squared, squared + 20)]):
                assert square == job_id**2
            squared += 20
            came = came or many_nodes.add_node({"num_cpus": 2, "num_gpus": 1})
        avoided = pool._avoided == {came}  # type: ignore[attr-defined]
        list(pool.map([Number(i) for i in range(20)]))
    many_nodes.kill_node(came)
    wait_until_gone(came)
    return came, avoided


@contextmanager
def no_copies() -> Iterator[None]:
    """No worker is ever too slow, so that a machine which stalls for a second changes no count of tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "_SUSPECT_AFTER", 1e9)
        yield


@contextmanager
def patched_to_many(as_if_many: bool) -> Iterator[None]:
    """As if a few workers were hundreds, whose results wait for each other, a second here; none is ever too slow."""
    with pytest.MonkeyPatch.context() as patch, no_copies():
        patch.setattr(pool_module, "_TAKE_BACK_S", 30.0)
        if as_if_many:
            patch.setattr(listening, "_MANY", 1)
            patch.setattr(listening, "_ANSWERS_PER_S", 4)
            patch.setattr(pool_module, "_PROMPT", 0)
        yield


def run_while_its_node_is_lost(folder: Path) -> tuple[str, list[bool]]:
    """A task whose node is killed once it has begun there; its result, and the losses that metrics were told of."""
    executor = RayExecutor(config(execution__max_attempts=1))
    told = note_preempted(executor)

    def lose(_: Update) -> None:
        first, *again = all_begun(folder)
        if again:
            (folder / "go").touch()
        else:
            many_nodes.kill_node(first.node_id)

    return executor.run(noting_task, str(folder), resources=Resources(), on_update=lose), told


def wait_until_gone(node_id: str) -> None:
    """Until a node has left the cluster."""
    while any(node.id == node_id and node.alive for node in nodes()):
        time.sleep(0.1)


def _up(pool: Any) -> list[Any]:
    return [member for member in pool._members if member.ready and member.doubt is None]


def _busy_node(pool: Any) -> str:
    return next(str(member.identity.node_id) for member in _up(pool) if member.jobs)
