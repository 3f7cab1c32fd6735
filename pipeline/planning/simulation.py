"""How long a pool takes for episodes, simulated: workers that step lanes in lockstep, one driver that feeds them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.execution.jobs import share


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


@dataclass
class _Worker:
    """A worker in the simulation.

    Attributes:
        speed: how fast it is.
        inbox: lengths of the episodes that lie before it.
        ends: of the lanes at work, in steps of the worker; a heap.
        steps: that it has made.
        at: the time of which all this is true.
        busy_s: that it has driven.
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
        """When the next of its episodes ends."""
        return self.at + (self.ends[0] - self.steps) * self.speed.step_s(len(self.ends))

    def advance(self, now: float) -> None:
        if self.ends:
            self.steps += (now - self.at) / self.speed.step_s(len(self.ends))
            self.busy_s += now - self.at
        self.at = now

    def begin(self) -> None:
        """Idle lanes take what lies there."""
        while self.inbox and len(self.ends) < self.speed.lanes:
            heapq.heappush(self.ends, self.steps + self.inbox.popleft())

    def end(self) -> None:
        """The next episode to end does, just now."""
        self.advance(self.next_end)
        self.steps = heapq.heappop(self.ends)
        self.begin()


def drive(lengths: Sequence[int], workers: int, speed: WorkerSpeed, dispatch_s: float) -> Drive:
    """Simulate how a pool hands episodes out (``pipeline.execution.protocol.share``), to whoever has just ended one.

    Args:
        lengths: of the episodes, in steps, in the order that they are handed out in.
        workers: in the pool.
        speed: of each.
        dispatch_s: seconds of the driver an episode; it does one thing at a time.
    """
    waiting = deque(lengths)
    pool = [_Worker(speed) for _ in range(min(workers, len(lengths)))]
    missing, driver, end = len(lengths), 0.0, 0.0
    # (when, whose, what): an episode's end, or episodes that arrive. Of a worker whose lanes changed since, an end is
    # out of date: the number tells.
    events: list[tuple[float, int, int, list[int]]] = []
    versions = [0] * len(pool)

    def look_out_for(index: int) -> None:
        versions[index] += 1
        if pool[index].ends:
            heapq.heappush(events, (pool[index].next_end, index, versions[index], []))

    def hand_out(index: int, now: float) -> None:
        nonlocal driver
        count = share(
            waiting=len(waiting), missing=missing, workers=len(pool), has=pool[index].has + under_way[index],
            jobs_at_once=speed.lanes,
        )  # fmt: skip
        if count:
            driver = max(driver, now) + count * dispatch_s
            under_way[index] += count
            heapq.heappush(events, (driver, index, 0, [waiting.popleft() for _ in range(count)]))

    under_way = [0] * len(pool)
    for index in range(len(pool)):
        hand_out(index, 0.0)
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
            hand_out(index, now)
        else:
            continue
        look_out_for(index)
    return Drive(end, sum(worker.busy_s for worker in pool), sum(lengths))


def episode_lengths(rng: np.random.Generator, count: int, limit: int, mean: float) -> list[int]:
    """Lengths in steps of a given mean: each step ends an episode with one and the same chance, the last surely."""
    chances = np.geomspace(1e-9, 1, 100_000)
    means = -np.expm1(limit * np.log1p(-chances[:-1])) / chances[:-1]
    chance = np.interp(mean, [1.0, *means[::-1]], chances[::-1])
    return [int(length) for length in np.minimum(rng.geometric(chance, count), limit)]
