"""Simulation of the time a pool takes to run episodes: workers step lanes in lockstep, one driver feeds them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.execution.jobs import batch_for_worker


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
    def from_rates(cls, config: RunConfig, all_lanes: float, one_lane: float) -> WorkerSpeed:
        """Compute the speed from agent-steps/s with all lanes active and with one.

        Raises:
            ConfigError: No worker can have these two rates.
        """
        lanes, micro_batch = config.rollouts.lanes, config.rollouts.micro_batch
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


@dataclass
class _Worker:
    """A worker in the simulation.

    Attributes:
        speed: Speed of the worker.
        inbox: Lengths of the episodes dispatched to it and not started, in steps.
        ends: End of each active lane's episode, in steps of the worker; a heap.
        steps: Steps made so far.
        at: Time of this state, in seconds.
        busy_s: Seconds spent on episodes.
    """

    speed: WorkerSpeed
    inbox: deque[int] = field(default_factory=deque)
    ends: list[float] = field(default_factory=list)
    steps: float = 0.0
    at: float = 0.0
    busy_s: float = 0.0

    @property
    def has(self) -> int:
        return len(self.inbox) + len(self.ends)

    @property
    def next_end(self) -> float:
        """Time at which its next episode ends, in seconds."""
        return self.at + (self.ends[0] - self.steps) * self.speed.step_s(len(self.ends))

    def advance(self, now: float) -> None:
        if self.ends:
            self.steps += (now - self.at) / self.speed.step_s(len(self.ends))
            self.busy_s += now - self.at
        self.at = now

    def begin(self) -> None:
        """Start dispatched episodes on idle lanes."""
        while self.inbox and len(self.ends) < self.speed.lanes:
            heapq.heappush(self.ends, self.steps + self.inbox.popleft())

    def end(self) -> None:
        """Advance to the end of the next episode."""
        self.advance(self.next_end)
        self.steps = heapq.heappop(self.ends)
        self.begin()


def simulate_rollouts(lengths: Sequence[int], workers: int, speed: WorkerSpeed, dispatch_s: float) -> SimulatedRollouts:
    """Simulate a pool that dispatches episodes to each worker that ends one.

    The size of each batch is that of ``pipeline.execution.jobs.batch_for_worker``.

    Args:
        lengths: Episode lengths in steps, in order of dispatch.
        workers: Number of workers in the pool.
        speed: Speed of each worker.
        dispatch_s: Driver's seconds per episode; it does one thing at a time.
    """
    waiting = deque(lengths)
    pool = [_Worker(speed) for _ in range(min(workers, len(lengths)))]
    missing, driver, end = len(lengths), 0.0, 0.0
    # (time, worker, version, arriving episodes): the end of an episode, or episodes that arrive. An end is outdated if
    # the worker's lanes have changed since, which its version shows.
    events: list[tuple[float, int, int, list[int]]] = []
    versions = [0] * len(pool)

    def schedule_next_end(index: int) -> None:
        versions[index] += 1
        if pool[index].ends:
            heapq.heappush(events, (pool[index].next_end, index, versions[index], []))

    def dispatch(index: int, now: float) -> None:
        nonlocal driver
        count = batch_for_worker(
            waiting=len(waiting), missing=missing, workers=len(pool), has=pool[index].has + under_way[index],
            jobs_at_once=speed.lanes,
        )  # fmt: skip
        if count:
            driver = max(driver, now) + count * dispatch_s
            under_way[index] += count
            heapq.heappush(events, (driver, index, 0, [waiting.popleft() for _ in range(count)]))

    under_way = [0] * len(pool)
    for index in range(len(pool)):
        dispatch(index, 0.0)
    while events:
        now, index, version, arriving = heapq.heappop(events)
        worker = pool[index]
        if arriving:
            worker.advance(now)
            worker.inbox.extend(arriving)
            under_way[index] -= len(arriving)
            worker.begin()
        elif version == versions[index]:
            worker.end()
            missing, end = missing - 1, now
            dispatch(index, now)
        else:
            continue
        schedule_next_end(index)
    return SimulatedRollouts(end, sum(worker.busy_s for worker in pool), sum(lengths))


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
