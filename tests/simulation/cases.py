"""Cases drawn from seeds: maps of jobs, a cluster, and the harm that is done to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.simulation.workers import SimulatedJob

FEW = 24  # workers of most cases, at most
_IDS = 100_000  # more than any map has jobs
_FEW_JOBS, _MORE_JOBS, _MANY_JOBS = 140, 400, 10_000  # maximum numbers of jobs of a map


@dataclass
class SimulatedMap:
    """One map of a case.

    Attributes:
        jobs: Jobs of the map.
        pause_s: Seconds before the map, in which the driver does other things.
        most: Number of results after which the map is abandoned; None if it is run to its end.
    """

    jobs: list[SimulatedJob]
    pause_s: float = 0.0
    most: int | None = None


@dataclass
class Case:
    """Case drawn from a seed.

    Attributes:
        seed: The seed.
        workers: Number of workers that are wanted.
        lanes: Number of lanes of each worker.
        maps: Maps, one after the other. A later one may reuse the IDs of an earlier one, or its very jobs.
        max_attempts: Number of attempts of each job.
        timeout_s: Silence of a worker after which it counts as hung, in seconds.
        calm: Whether nothing happens at all.
        late_s: Longest time until a worker is up, in seconds.
        delay_s: Longest time of most messages, in seconds.
        far: Share of messages that take up to a second.
        one_by_one: Whether the driver takes one answer per look, as it does on Ray with up to 32 workers.
        stragglers: Share of workers that take ten times as long.
        kills: Number of workers that die.
        hangs: Number of workers that hang.
        disconnections: Number of workers that are unreachable for some seconds, and answer again.
        long_disconnections: Number of workers that are unreachable for more than half a minute, and answer again.
        lost_nodes: Number of nodes that are lost.
        drains: Number of nodes that are drained.
        stops: Number of times that the driver is stopped for a while.
        lost_recalls: Share of recalls that are lost, or whose answers are.
        failed_starts: Number of workers that raise while they are built.
        poison: Jobs (by ID) that do harm to their worker: ``kill``, ``hang``, ``name`` or ``raise``, and how often.
        fatal: Job that does harm at each attempt, and which; None in most cases. The harm may also be ``vanish``: the
            worker dies, and Ray reports that long after its connection has failed.
        unlucky: Whether a job may fail for the last time by bad luck.
        no_start: Whether each worker raises while it is built.
    """

    seed: int
    workers: int
    lanes: int
    maps: list[SimulatedMap]
    max_attempts: int
    timeout_s: float
    calm: bool = False
    late_s: float = 1.0
    delay_s: float = 0.005
    far: float = 0.0
    one_by_one: bool = False
    stragglers: float = 0.0
    kills: int = 0
    hangs: int = 0
    disconnections: int = 0
    long_disconnections: int = 0
    lost_nodes: int = 0
    drains: int = 0
    stops: int = 0
    lost_recalls: float = 0.0
    failed_starts: int = 0
    poison: dict[int, tuple[str, int]] = field(default_factory=dict)
    fatal: tuple[int, str] | None = None
    unlucky: bool = False
    no_start: bool = False

    @property
    def longest_delay_s(self) -> float:
        """Longest time of a message, in seconds."""
        return max(self.delay_s, 1.0 if self.far else 0.0)

    @property
    def orderly(self) -> bool:
        """Whether no message is so late that another decision follows from it, and none is lost."""
        return not (self.far or self.lost_recalls) and self.delay_s <= 0.05


def case_of(seed: int, most_workers: int = FEW) -> Case:
    """Draw a case.

    Of six cases one is calm, one has a job that always fails (or workers that do), one has only deaths and errors, and
    three have anything. With many workers, all have.

    Args:
        seed: Seed.
        most_workers: Maximum number of workers. With more than ``FEW``, it is the exact number.
    """
    rng = random.Random(seed)
    workers, lanes = max(1, int(most_workers ** rng.random())), rng.choice([1, 1, 1, 2, 3, 16])
    kind, late_s, per_lane = rng.randrange(6), rng.choice([0.1, 3, 30]), rng.choice([0.3, 1, 2, 4, 8])
    most = _FEW_JOBS
    if most_workers > FEW:
        workers, most, kind = most_workers, _MANY_JOBS, 5
    elif kind == 0 and rng.random() < 0.5:  # workers with many lanes join while all jobs lie before others
        workers, lanes, late_s, per_lane, most = rng.randint(5, 12), 16, 3, 2, _MORE_JOBS
    count = max(1, min(most, int(workers * lanes * per_lane)))
    maps = _draw_maps(rng, count, alone=kind == 1)
    case = Case(
        seed, workers, lanes, maps, rng.randint(1, 4), rng.uniform(30, 90), late_s=late_s,
        delay_s=rng.choice([0.005, 0.005, 0.005, 0.05, 0.2]), one_by_one=rng.random() < 0.5,
    )  # fmt: skip
    jobs = maps[0].jobs
    ids = range(len(jobs))
    if kind == 0:
        case.calm = True
    elif kind == 1 and rng.random() < 0.1:
        case.no_start = True
    elif kind == 1:
        case.fatal = rng.choice(ids), rng.choice(["kill", "vanish", "hang", "name", "raise"])
    else:
        _draw_harm(rng, case, ids, anything=kind > 2)
    return case


def _draw_harm(rng: random.Random, case: Case, ids: Sequence[int], *, anything: bool) -> None:
    more = max(1, case.workers // 100)  # of many workers, more are harmed
    case.kills, case.failed_starts = rng.choice([0, 0, 1, 2, 4]) * more, rng.choice([0, 0, 0, 1, 2])
    for job in rng.sample(ids, min(len(ids), rng.choice([0, 0, 1, 2]) * more)):
        case.poison[job] = rng.choice(["kill", "name", "raise"]), rng.randint(1, 2)
    if anything:
        case.hangs, case.disconnections = (rng.choice([0, 0, 1, 2]) * more for _ in range(2))
        case.long_disconnections = rng.choice([0, 0, 0, 1])
        case.lost_nodes, case.drains, case.stops = (rng.choice([0, 0, 1, 2]) for _ in range(3))
        case.stragglers, case.far = rng.choice([0, 0, 0, 0.1, 0.3]), rng.choice([0, 0, 0, 0.02, 0.1])
        case.timeout_s += 100 if case.stragglers else 0  # their longest jobs take as long
        case.lost_recalls = rng.choice([0, 0, 0, 0.1, 0.5])
        for job in rng.sample(ids, min(len(ids), rng.choice([0, 0, 1]))):
            case.poison[job] = "hang", 1
    # Most cases let no job fail for the last time.
    harm = case.kills + case.hangs + case.disconnections + case.long_disconnections + case.failed_starts
    case.max_attempts = harm + sum(times for _, times in case.poison.values()) + rng.randint(1, 3)
    if anything and rng.random() < 0.3:
        case.unlucky, case.max_attempts = True, rng.choice([1, 1, 2, 3])


def _draw_maps(rng: random.Random, count: int, *, alone: bool) -> list[SimulatedMap]:
    maps = [SimulatedMap(_draw_jobs(rng, 0, range(count)))]
    while not alone and len(maps) < 4 and rng.random() < 0.3:
        number, before = len(maps), maps[-1]
        if rng.random() < 0.5:
            before.most = rng.randint(0, len(before.jobs))
        how = rng.choice(["new", "same IDs", "same jobs", "same jobs"])
        if how == "new":
            first = number * _IDS
            jobs = _draw_jobs(rng, number, range(first, first + rng.randint(1, len(before.jobs))))
        else:
            jobs = rng.sample(before.jobs, rng.randint(1, len(before.jobs)))
            if how == "same IDs":
                jobs = _draw_jobs(rng, number, [job.id for job in jobs])  # type: ignore[misc]
        maps.append(SimulatedMap(jobs, pause_s=rng.choice([0.0, 0.0, 0.5, 5.0, 50.0])))
    return maps


def _draw_jobs(rng: random.Random, number: int, ids: Sequence[int]) -> list[SimulatedJob]:
    return [SimulatedJob(job_id, _draw_size(rng), (number, job_id)) for job_id in ids]


def _draw_size(rng: random.Random) -> float:
    return rng.uniform(0.5, 1.5) if rng.random() < 0.9 else 0.5 * min(rng.paretovariate(1.5), 20)
