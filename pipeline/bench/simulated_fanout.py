"""``bench fanout``: how busy the scheduler keeps up to 2,048 workers, in a simulated cluster in virtual time."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

import numpy as np

from pipeline.base.machine import num_cores
from pipeline.base.seeding import derive, generator
from pipeline.bench.table import FANOUT
from pipeline.execution.actions import Action
from pipeline.execution.scheduler import Scheduler
from pipeline.execution.worker_state import ScheduledWorker
from pipeline.simulation.cluster import DriverCosts, SimulatedCluster
from pipeline.simulation.workers import SimulatedJob

WORKERS = (16, 64, 256, 1024, 2048)
JOBS_PER_LANE = (4, 16)
LANES = (1, 16)
_DURATIONS = ("uniform", "heavy-tailed")

# Measured with Ray 2.60 and 8 actors on two cores of an AMD EPYC: CPU time of the driver's thread to submit one of many
# calls, to look for their answers, and to read them at once. A call and its answer take 1.3 to 2.3 ms.
RAY_COSTS = DriverCosts(look_s=1e-6, read_s=1e-5, send_s=1e-4, job_s=1e-5)
_DELAY_S = (0.5e-3, 1e-3)  # bounds of a message's time, one way

_UNIFORM_S = (0.5, 1.5)
_TAIL_S, _TAIL_INDEX, _LONGEST_S = 0.5, 1.5, 20.0  # Pareto distribution: scale, index, largest value
_MOST_JOBS = 131_072  # jobs per row; more would take minutes
_LEAST_JOBS, _MOST_MAPS = 16_384, 64  # per row: with fewer jobs, a row is the mean of several maps

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Setting:
    """Parameters of one row of the table.

    Attributes:
        workers: Number of workers, all up from the beginning.
        lanes: Jobs that a worker runs at once.
        jobs_per_lane: Number of jobs, for each lane of all workers.
        durations: "uniform" or "heavy-tailed".
    """

    workers: int
    lanes: int
    jobs_per_lane: int
    durations: str

    @property
    def num_lanes(self) -> int:
        """Number of lanes of all workers."""
        return self.workers * self.lanes

    @property
    def num_jobs(self) -> int:
        """Number of jobs."""
        return self.num_lanes * self.jobs_per_lane

    def draw(self, number: int) -> list[float]:
        """Draw the durations of the jobs of a map, in seconds."""
        count = self.num_jobs
        rng = generator(0, f"bench/fanout/{self.durations}", count, number)
        if self.durations == "uniform":
            return list(map(float, rng.uniform(*_UNIFORM_S, count)))
        return list(map(float, np.minimum(_TAIL_S * (1 + rng.pareto(_TAIL_INDEX, count)), _LONGEST_S)))


@dataclass(frozen=True)
class SimulatedFanout:
    """A row of the table; means over maps.

    Attributes:
        workers, lanes, jobs_per_lane, durations: See ``Setting``.
        seconds: Seconds to the last result.
        busy: Share of the lanes' time spent on jobs; a job that is run twice counts once.
        greedy: The same share if each job were dispatched, at no cost, to the lane that is free first.
        of_greedy: ``busy`` as a share of ``greedy``.
        error: Standard error of ``of_greedy``; 0 for a single map.
        actor_pool: The same share as ``busy`` for the rule of ``ray.util.ActorPool``, at the same costs.
        driver: Share of the time in which the driver was busy.
        scheduler_us: CPU time of the scheduler's own code, in microseconds per job. Not virtual: it was measured.
    """

    workers: int
    lanes: int
    jobs_per_lane: int
    durations: str
    seconds: float
    busy: float
    greedy: float
    of_greedy: float
    error: float
    actor_pool: float
    driver: float
    scheduler_us: float


def simulate_fanout(show: Callable[[str], None], settings: Sequence[Setting] | None = None) -> list[SimulatedFanout]:
    """Simulate all rows, on all cores of this machine.

    Args:
        show: Function that gets each row's line, in order.
        settings: Rows; None: all of the table.
    """
    if settings is None:
        settings = [Setting(*values) for values in product(WORKERS, LANES, JOBS_PER_LANE, _DURATIONS)]
        settings = [setting for setting in settings if setting.num_jobs <= _MOST_JOBS]
    rows = []
    with ProcessPoolExecutor(num_cores(), mp_context=get_context("spawn")) as processes:
        for row in processes.map(simulated_row, settings):
            rows.append(row)
            show(table_row(row))
    return rows


def simulated_row(setting: Setting) -> SimulatedFanout:
    """Simulate maps of one setting."""
    maps = min(max(1, _LEAST_JOBS // setting.num_jobs), _MOST_MAPS)
    return _mean(setting, [_simulated_map(setting, number) for number in range(maps)])


@dataclass(frozen=True)
class _Map:
    """One simulated map, see ``SimulatedFanout``."""

    seconds: float
    work_s: float
    greedy_s: float
    actor_pool_s: float
    driver_s: float
    scheduler_us: float


def _simulated_map(setting: Setting, number: int) -> _Map:
    durations = setting.draw(number)
    scheduler = TimedScheduler(max_attempts=3, timeout_s=900.0, jobs_at_once=setting.lanes, max_workers=setting.workers)
    cluster = SimulatedCluster(scheduler, num_lanes=setting.lanes, costs=RAY_COSTS, delay=_delays(number))
    cluster.start_ready(setting.workers)
    scheduler.cpu_s = 0.0
    seconds = cluster.run([SimulatedJob(i, duration) for i, duration in enumerate(durations)])
    return _Map(
        seconds=seconds,
        work_s=sum(durations) / setting.num_lanes,
        greedy_s=greedy_seconds(durations, setting.num_lanes),
        actor_pool_s=_actor_pool_seconds(durations, setting.num_lanes, RAY_COSTS, _delays(number)),
        driver_s=cluster.driver_s,
        scheduler_us=1e6 * scheduler.cpu_s / len(durations),
    )


def _mean(setting: Setting, maps: Sequence[_Map]) -> SimulatedFanout:
    ratios = [each.greedy_s / each.seconds for each in maps]
    return SimulatedFanout(
        **asdict(setting),
        seconds=_mean_of([each.seconds for each in maps]),
        busy=_mean_of([each.work_s / each.seconds for each in maps]),
        greedy=_mean_of([each.work_s / each.greedy_s for each in maps]),
        of_greedy=_mean_of(ratios),
        error=float(np.std(ratios, ddof=1)) / len(maps) ** 0.5 if len(maps) > 1 else 0.0,
        actor_pool=_mean_of([each.work_s / each.actor_pool_s for each in maps]),
        driver=_mean_of([each.driver_s / each.seconds for each in maps]),
        scheduler_us=_mean_of([each.scheduler_us for each in maps]),
    )


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _delays(number: int) -> Callable[[], float]:
    rng = random.Random(derive(0, "bench/fanout/delays", number))
    return lambda: rng.uniform(*_DELAY_S)


class TimedScheduler(Scheduler):
    """``Scheduler`` that measures its own CPU time.

    Attributes:
        cpu_s: CPU time so far, in seconds.
    """

    cpu_s = 0.0

    def results(self, worker: ScheduledWorker, results: Sequence[tuple[int, float]], now: float) -> list[Any]:
        """See ``Scheduler.results``."""
        return self._timed(super().results, worker, results, now)

    def released(self, worker: ScheduledWorker, ids: Sequence[int]) -> None:
        """See ``Scheduler.released``."""
        self._timed(super().released, worker, ids)

    def tick(self, now: float) -> None:
        """See ``Scheduler.tick``."""
        self._timed(super().tick, now)

    def decide(self, now: float) -> list[Action]:
        """See ``Scheduler.decide``."""
        return self._timed(super().decide, now)

    def _timed(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        began = time.thread_time()
        result = function(*arguments, **named)
        self.cpu_s += time.thread_time() - began
        return result


def greedy_seconds(seconds: Sequence[float], lanes: int) -> float:
    """Compute the seconds of greedy (list) scheduling: each job, in order, at no cost, to the first free lane."""
    free_at = [0.0] * lanes
    for duration in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def _actor_pool_seconds(seconds: Sequence[float], lanes: int, costs: DriverCosts, delay: Callable[[], float]) -> float:
    """Compute the seconds of the rule of ``ray.util.ActorPool``: a lane gets its next job when its result is read.

    Args:
        seconds: Durations in seconds, in order of dispatch.
        lanes: Number of lanes; each is an actor of its own.
        costs: Costs of the driver's actions; it looks at all unfinished jobs for each result.
        delay: Function that returns the seconds that the next message takes.
    """
    answers: list[float] = []
    waiting: Iterator[float] = iter(seconds)
    driver = 0.0

    def dispatch() -> None:
        nonlocal driver
        duration = next(waiting, None)
        if duration is not None:
            driver += costs.send_s + costs.job_s
            heapq.heappush(answers, driver + delay() + duration + delay())

    for _ in range(lanes):
        dispatch()
    while answers:
        driver = max(driver, answers[0]) + costs.look_s * len(answers) + costs.read_s
        heapq.heappop(answers)
        dispatch()
    return driver


def table_header() -> list[str]:
    """Write the header of the Markdown table."""
    return [
        "| workers | lanes | jobs a lane | durations | s to the last result | busy | greedy's bound | of the bound | "
        "ActorPool | driver | scheduler, us a job |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]


def table_row(row: SimulatedFanout) -> str:
    """Write a row of the Markdown table."""
    error = f" ± {row.error:.1%}" if row.error else ""
    return (
        f"| {row.workers:,} | {row.lanes} | {row.jobs_per_lane} | {row.durations} | {row.seconds:.2f} | "
        f"{row.busy:.1%} | {row.greedy:.1%} | {row.of_greedy:.1%}{error} | {row.actor_pool:.1%} | {row.driver:.0%} | "
        f"{row.scheduler_us:.0f} |"
    )


def to_json(rows: Sequence[SimulatedFanout]) -> dict[str, Any]:
    """Convert to JSON values, see ``rows_to_json``."""
    return rows_to_json("share of the lanes' time", [asdict(row) for row in rows], "actor_pool")


def rows_to_json(unit: str, rows: Sequence[dict[str, Any]], reference: str) -> dict[str, Any]:
    """Convert rows of simulated or of real workers to JSON values: that with the most workers and jobs, and all rows.

    Args:
        unit: Unit of ``busy``.
        rows: Values of each row by name, with ``busy`` among them.
        reference: Name of the value that ``busy`` is compared with.
    """
    last = rows[-1]
    compared = {"ours": last["busy"], "ratio": last["busy"] / last[reference]}
    return {"bench": FANOUT, "unit": unit, **last, **compared, "rows": [*rows]}
