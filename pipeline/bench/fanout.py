"""``bench fanout``: how busy the production pool keeps many workers. Real Ray actors; what they do is simulated."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.base.seeding import generator
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor, Pool

JOBS = (1024, 4096)
FEWER_WORKERS = (16, 64)
_SECONDS = (0.5, 1.5)
_WARM_UP_S = 1.0
_WARM_UP_JOBS = 16  # a worker: a generation before those that are measured, as there is before all but the first


@dataclass(frozen=True)
class SimulatedEpisode:
    """An episode that only takes time: ``seconds`` of it."""

    id: tuple[int, int]
    seconds: float


class SleepingWorker:
    """Sleeps instead of driving."""

    def run(self, jobs: Iterable[SimulatedEpisode]) -> Iterator[tuple[tuple[int, int], None]]:
        for job in jobs:
            time.sleep(job.seconds)
            yield job.id, None


@dataclass(frozen=True)
class Round:
    """One generation of simulated episodes.

    Attributes:
        seconds: from the first job handed out to the last result.
        first_result_s: until the first result.
        driver_ms: CPU time of the driver's thread: what it does besides waiting.
        process_ms: CPU time of the driver's process, Ray's own threads with it.
    """

    seconds: float
    first_result_s: float
    driver_ms: float
    process_ms: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a number of workers and of jobs.

    Attributes:
        workers, jobs: how many.
        busy: share of the workers' time in which they were at a job; a job that is run twice counts once.
        greedy: the same, had each job gone at once and at no cost to the worker that is free first.
        reference: the same of a plain ``ray.util.ActorPool`` loop.
        first_result_s, driver_ms, process_ms: see ``Round``.
        reference_driver_ms: the driver's thread in the reference.
        copies: jobs that were run twice, in all generations on so many workers.
    """

    workers: int
    jobs: int
    busy: float
    greedy: float
    reference: float
    first_result_s: float
    driver_ms: float
    process_ms: float
    reference_driver_ms: float
    copies: int


def bench_fanout(workers: int, executor: Callable[[RunConfig], Executor], show: Callable[[str], None]) -> list[Row]:
    """Generations of simulated episodes on 16, 64 and ``workers`` workers; shows each row as it is measured.

    Args:
        workers: at most.
        executor: makes one on Ray.
        show: is given each row's line.
    """
    from actors.actor_pool import actor_pool

    # Hundreds of processes that begin at once on a few cores take longer to report than Ray waits for.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "900")
    counts = sorted({count for count in FEWER_WORKERS if count < workers} | {workers})

    def on(count: int) -> Executor:
        return executor(RunConfig.model_validate({"execution": {"workers": count}}))

    started = on(workers)
    rows = []
    try:
        for count in counts:
            with on(count).pool(SleepingWorker) as pool:
                _wait_for_all(pool, count)
                copies = pool.copies  # type: ignore[attr-defined]
                ours = _rounds(pool.map, count)
                copies = pool.copies - copies  # type: ignore[attr-defined]
            with actor_pool(SleepingWorker, [SimulatedEpisode((0, i), _WARM_UP_S) for i in range(count)]) as map_jobs:
                references = _rounds(map_jobs, count)
            for jobs, ours_round, reference in zip(JOBS, ours, references, strict=True):
                seconds = [job.seconds for job in simulated_jobs(jobs, 0)]
                rows.append(
                    Row(
                        count, jobs,
                        busy=sum(seconds) / count / ours_round.seconds,
                        greedy=sum(seconds) / count / greedy_seconds(seconds, count),
                        reference=sum(seconds) / count / reference.seconds,
                        first_result_s=ours_round.first_result_s,
                        driver_ms=ours_round.driver_ms,
                        process_ms=ours_round.process_ms,
                        reference_driver_ms=reference.driver_ms,
                        copies=copies,
                    )
                )  # fmt: skip
                show(table_row(rows[-1]))
    finally:
        started.close()
    return rows


def simulated_jobs(count: int, generation: int) -> list[SimulatedEpisode]:
    """Uniform between 0.5 and 1.5 s, the same in each generation; a late answer of another one is told by the id."""
    seconds = generator(0, "bench/fanout", count).uniform(*_SECONDS, count)
    return [SimulatedEpisode((generation, i), float(s)) for i, s in enumerate(seconds)]


def greedy_seconds(seconds: Sequence[float], workers: int) -> float:
    """How long greedy (list) scheduling takes: each job, in order, to the worker that is free first, at no cost."""
    free_at = [0.0] * workers
    for duration in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def table_header() -> list[str]:
    return [
        "| workers | jobs | busy | greedy's bound | of the bound | ActorPool | first result, s | driver, ms | "
        "its process, ms | ActorPool's driver, ms | run twice |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]


def table_row(row: Row) -> str:
    return (
        f"| {row.workers} | {row.jobs:,} | {row.busy:.1%} | {row.greedy:.1%} | {row.busy / row.greedy:.1%} | "
        f"{row.reference:.1%} | {row.first_result_s:.2f} | {row.driver_ms:.0f} | {row.process_ms:.0f} | "
        f"{row.reference_driver_ms:.0f} | {row.copies} |"
    )


def fanout_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """For JSON: those of the most workers and jobs, and all rows."""
    last = rows[-1]
    return {
        "bench": "fanout",
        "unit": "share of the workers' time",
        **asdict(last),
        "ours": last.busy,
        "ratio": last.busy / last.reference,
        "rows": [asdict(row) for row in rows],
    }


def _wait_for_all(pool: Pool, workers: int) -> None:
    """Until every worker is up, as all are from the second generation on."""
    while pool.num_workers < workers:
        for _ in pool.map(SimulatedEpisode((0, i), _WARM_UP_S) for i in range(workers)):
            pass


def _rounds(map_jobs: Callable[[Sequence[SimulatedEpisode]], Iterable[Any]], workers: int) -> list[Round]:
    """One for each number of jobs, after one that is not measured."""
    _measured(map_jobs, simulated_jobs(_WARM_UP_JOBS * workers, 1))
    return [_measured(map_jobs, simulated_jobs(jobs, generation)) for generation, jobs in enumerate(JOBS, 2)]


def _measured(
    map_jobs: Callable[[Sequence[SimulatedEpisode]], Iterable[Any]], jobs: Sequence[SimulatedEpisode]
) -> Round:
    thread, process, began = time.thread_time(), time.process_time(), time.perf_counter()
    first = None
    for _ in map_jobs(jobs):
        first = first or time.perf_counter() - began
    assert first is not None
    return Round(
        time.perf_counter() - began,
        first,
        1000 * (time.thread_time() - thread),
        1000 * (time.process_time() - process),
    )
