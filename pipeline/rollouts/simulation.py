"""How long a pool takes for episodes, simulated: workers that step lanes in lockstep, one driver that feeds them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.rollouts.loop import JOBS_PER_LANE


@dataclass(frozen=True)
class WorkerSpeed:
    """How fast one worker drives, by how many of its lanes are at work.

    A step of n lanes takes ``ceil(n / micro_batch) * batch_s + n * lane_s``: the networks run on whole micro-batches,
    the environments one by one.

    Attributes:
        lanes, micro_batch: as configured.
        all_lanes: agent-steps/s with every lane at work.
        batch_s: seconds that a micro-batch takes in the networks.
        lane_s: seconds that a lane takes in its environment.
    """

    lanes: int
    micro_batch: int
    all_lanes: float
    batch_s: float
    lane_s: float

    @classmethod
    def from_rates(cls, config: RunConfig, all_lanes: float, one_lane: float) -> WorkerSpeed:
        """From agent-steps/s with all lanes at work and with one.

        Raises:
            ConfigError: no worker has such rates.
        """
        lanes, micro_batch = config.rollouts.lanes, config.rollouts.micro_batch
        batches = ceil(lanes / micro_batch)
        if lanes == batches:  # every lane is a micro-batch of its own: how many are at work makes no difference
            return cls(lanes, micro_batch, all_lanes, 0.0, 1 / all_lanes)
        if not one_lane <= all_lanes <= one_lane * lanes / batches:
            raise ConfigError(
                f"{all_lanes:,.0f} agent-steps/s with all lanes of a worker and {one_lane:,.0f} with one cannot be: "
                f"{lanes} lanes are {batches} micro-batches, so between {one_lane:,.0f} and "
                f"{one_lane * lanes / batches:,.0f} were expected with all. Measure on a machine that does nothing "
                "else, or give both by --steps-per-s ALL ONE"
            )
        lane_s = (lanes / all_lanes - batches / one_lane) / (lanes - batches)
        return cls(lanes, micro_batch, all_lanes, 1 / one_lane - lane_s, lane_s)

    def step_s(self, active: int) -> float:
        """Seconds of one step of so many lanes."""
        return ceil(active / self.micro_batch) * self.batch_s + active * self.lane_s

    def call_s(self, lengths: Sequence[int]) -> float:
        """Seconds that a worker takes for the episodes of one call, as ``RolloutWorker.run`` drives them.

        Args:
            lengths: of the episodes, in steps.
        """
        waiting = deque(lengths)
        ends: list[int] = []  # of the lanes at work, in steps of the worker
        now, seconds = 0, 0.0
        while waiting or ends:
            while waiting and len(ends) < self.lanes:
                heapq.heappush(ends, now + waiting.popleft())
            end = heapq.heappop(ends)
            seconds += (end - now) * self.step_s(len(ends) + 1)
            now = end
        return seconds


@dataclass(frozen=True)
class Drive:
    """Episodes driven by a pool.

    Attributes:
        seconds: until the last result.
        busy_s: that workers drove, all together.
        steps: of all episodes.
    """

    seconds: float
    busy_s: float
    steps: float


def drive(lengths: Sequence[int], workers: int, speed: WorkerSpeed, dispatch_s: float) -> Drive:
    """Simulate how a pool hands episodes out: whoever is idle gets the next call, calls get smaller towards the end.

    Args:
        lengths: of the episodes, in steps, in the order that they are handed out in.
        workers: in the pool.
        speed: of each.
        dispatch_s: seconds of the driver an episode; it does one thing at a time.
    """
    largest = JOBS_PER_LANE * speed.lanes
    idle_from = [0.0] * min(workers, len(lengths))
    driver = busy_s = end = 0.0
    done = 0
    while done < len(lengths):
        call = lengths[done : done + _call_size(len(lengths) - done, workers, largest)]
        done += len(call)
        driver = max(driver, heapq.heappop(idle_from)) + len(call) * dispatch_s
        took = speed.call_s(call)
        busy_s += took
        heapq.heappush(idle_from, driver + took)
        end = max(end, driver + took)
    return Drive(end, busy_s, sum(lengths))


def _call_size(waiting: int, workers: int, largest: int) -> int:
    """Episodes of the next call; the rule of ``actors/pool.py``."""
    return min(largest, max(1, waiting // (2 * workers)))


def episode_lengths(rng: np.random.Generator, count: int, limit: int, mean: float) -> list[int]:
    """Lengths in steps of a given mean: each step ends an episode with one and the same chance, the last surely."""
    chances = np.geomspace(1e-9, 1, 100_000)
    means = -np.expm1(limit * np.log1p(-chances[:-1])) / chances[:-1]
    chance = np.interp(mean, [1.0, *means[::-1]], chances[::-1])
    return [int(length) for length in np.minimum(rng.geometric(chance, count), limit)]
