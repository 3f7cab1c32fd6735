"""Simulation of the time a pool takes to run episodes: workers step lanes in lockstep, one driver feeds them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.config.agent import RolloutsConfig
from pipeline.execution.scheduler import Scheduler
from pipeline.simulation.cluster import DriverCosts, SimulatedCluster
from pipeline.simulation.workers import SimulatedJob


@dataclass(frozen=True)
class WorkerSpeed:
    """Speed of one worker, by its number of active lanes.

    A step of n lanes takes ``ceil(n / micro_batch) * batch_s + n * lane_s``: the networks run on whole micro-batches,
    the environments one by one.

    Attributes:
        lanes, micro_batch: Values of the config.
        all_lanes: Agent-steps/s with every lane active.
        batch_s: Seconds per micro-batch in the networks.
        lane_s: Seconds per lane in its environment.
    """

    lanes: int
    micro_batch: int
    all_lanes: float
    batch_s: float
    lane_s: float

    @classmethod
    def from_rates(cls, rollouts: RolloutsConfig, all_lanes: float, one_lane: float) -> WorkerSpeed:
        """Compute the speed from agent-steps/s with all lanes active and with one.

        Args:
            rollouts: Section ``rollouts`` of a config.
            all_lanes: Agent-steps/s with all lanes active.
            one_lane: Agent-steps/s with one.

        Raises:
            ConfigError: No worker can have these two rates.
        """
        lanes, micro_batch = rollouts.lanes, rollouts.micro_batch
        batches = ceil(lanes / micro_batch)
        if lanes == batches:  # every lane is its own micro-batch: the number of active lanes makes no difference
            return cls(lanes, micro_batch, all_lanes, 0.0, 1 / all_lanes)
        if not one_lane <= all_lanes <= one_lane * lanes / batches:
            raise ConfigError(
                f"a worker cannot make {all_lanes:,.0f} agent-steps/s with all lanes and {one_lane:,.0f} with one: "
                f"{lanes} lanes are {batches} micro-batches, so between {one_lane:,.0f} and "
                f"{one_lane * lanes / batches:,.0f} were expected with all. Measure on an idle machine, or pass both "
                "with --steps-per-s ALL ONE."
            )
        lane_s = (lanes / all_lanes - batches / one_lane) / (lanes - batches)
        return cls(lanes, micro_batch, all_lanes, 1 / one_lane - lane_s, lane_s)

    def step_s(self, active: int) -> float:
        """Seconds of one step of ``active`` lanes."""
        return ceil(active / self.micro_batch) * self.batch_s + active * self.lane_s


@dataclass(frozen=True)
class SimulatedRollouts:
    """Simulated time of a pool to run episodes.

    Attributes:
        seconds: Seconds until the last result.
        busy_s: Seconds that workers ran episodes, summed over workers.
        steps: Agent steps of all episodes.
    """

    seconds: float
    busy_s: float
    steps: float


class LockstepLanes:
    """Lanes that step together: a worker's step takes the longer, the more of them are active.

    See ``pipeline.simulation.workers.SimulatedLanes``; the size of a job is its length in steps, and ``busy_s`` is the
    time in which any lane was active.

    Args:
        speed: Speed of the worker.
    """

    def __init__(self, speed: WorkerSpeed) -> None:
        self.busy_s = 0.0
        self._speed = speed
        self._ends: list[tuple[float, int, SimulatedJob]] = []  # in steps of the worker
        self._steps = self._at = 0.0
        self._begun = 0

    @property
    def running(self) -> int:
        """See ``SimulatedLanes.running``."""
        return len(self._ends)

    def begin(self, job: SimulatedJob, now: float) -> None:
        """See ``SimulatedLanes.begin``."""
        self._advance(now)
        self._begun += 1
        heapq.heappush(self._ends, (self._steps + job.size, self._begun, job))

    def next_end(self) -> float:
        """See ``SimulatedLanes.next_end``."""
        if not self._ends:
            return math.inf
        return self._at + (self._ends[0][0] - self._steps) * self._speed.step_s(len(self._ends))

    def end(self, now: float) -> SimulatedJob:
        """See ``SimulatedLanes.end``."""
        self._advance(now)
        self._steps, _, job = heapq.heappop(self._ends)
        return job

    def _advance(self, now: float) -> None:
        if self._ends:
            self._steps += (now - self._at) / self._speed.step_s(len(self._ends))
            self.busy_s += now - self._at
        self._at = now


class _Rollouts(SimulatedCluster):
    def __init__(self, workers: int, speed: WorkerSpeed, dispatch_s: float) -> None:
        scheduler = Scheduler(max_attempts=3, jobs_at_once=speed.lanes, max_workers=workers)
        super().__init__(scheduler, num_lanes=speed.lanes, costs=DriverCosts(job_s=dispatch_s), delay=lambda: 0.0)
        self._speed = speed
        self.start_ready(workers)

    def make_lanes(self) -> LockstepLanes:
        return LockstepLanes(self._speed)


def simulate_rollouts(lengths: Sequence[int], workers: int, speed: WorkerSpeed, dispatch_s: float) -> SimulatedRollouts:
    """Simulate a pool whose scheduler (``pipeline.execution.scheduler``) dispatches episodes.

    Args:
        lengths: Episode lengths in steps, in order of dispatch.
        workers: Number of workers in the pool.
        speed: Speed of each worker.
        dispatch_s: Driver's seconds per episode; it does one thing at a time.
    """
    cluster = _Rollouts(min(workers, len(lengths)), speed, dispatch_s)
    seconds = cluster.run([SimulatedJob(number, length) for number, length in enumerate(lengths)])
    return SimulatedRollouts(seconds, sum(worker.lanes.busy_s for worker in cluster.workers), sum(lengths))


def episode_lengths(rng: np.random.Generator, count: int, limit: int, mean: float) -> list[int]:
    """Draw episode lengths with a given mean: each step ends an episode with the same probability, the last surely.

    Args:
        rng: Random generator.
        count: Number of episodes.
        limit: Maximum length in steps.
        mean: Mean length in steps.
    """
    chances = np.geomspace(1e-9, 1, 100_000)
    means = -np.expm1(limit * np.log1p(-chances[:-1])) / chances[:-1]
    chance = np.interp(mean, [1.0, *means[::-1]], chances[::-1])
    return [int(length) for length in np.minimum(rng.geometric(chance, count), limit)]
