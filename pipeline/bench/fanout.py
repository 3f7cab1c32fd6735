"""``bench fanout --workers N``: utilisation of real Ray actors by the production pool. Episodes are simulated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.machine import num_cores
from pipeline.base.seeding import generator
from pipeline.bench.simulated_fanout import greedy_seconds, rows_to_json
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor, Pool

JOBS_PER_WORKER = (16, 64)
FEWER_WORKERS = (4, 16)
_SECONDS = (0.5, 1.5)
_WARM_UP_S = 1.0
_MOST, _MOST_PER_CORE = 32, 16  # real workers
_WARM_UP_JOBS = 16  # jobs per worker of the unmeasured generation before the measured ones


@dataclass(frozen=True)
class SimulatedEpisode:
    """An episode that only sleeps for ``seconds``."""

    id: tuple[int, int]
    seconds: float


class SleepingWorker:
    """Worker that sleeps instead of running episodes."""

    def run(self, jobs: Iterable[SimulatedEpisode]) -> Iterator[tuple[tuple[int, int], None]]:
        """See ``Worker.run``."""
        for job in jobs:
            time.sleep(job.seconds)
            yield job.id, None


@dataclass(frozen=True)
class GenerationTiming:
    """Timing of one generation of simulated episodes.

    Attributes:
        seconds: Seconds from the first dispatched job to the last result.
        first_result_s: Seconds to the first result.
        driver_ms: CPU time of the driver's thread, in ms per job.
        process_ms: CPU time of the driver's process, including Ray's own threads, in ms per job.
    """

    seconds: float
    first_result_s: float
    driver_ms: float
    process_ms: float


@dataclass(frozen=True)
class FanoutResult:
    """Result for one number of workers and of jobs: a row of the table.

    Attributes:
        workers, jobs: Numbers of workers and jobs.
        busy: Share of the workers' time spent on jobs; a job that is run twice counts once.
        greedy: The same share if each job were dispatched, at no cost, to the worker that is free first.
        reference: The same share for a plain ``ray.util.ActorPool`` loop.
        first_result_s, driver_ms, process_ms: See ``GenerationTiming``.
        reference_driver_ms: CPU time of the driver's thread in the reference, in ms per job.
        copies: Number of jobs that were run twice, in all generations on this number of workers.
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


def bench_fanout(
    workers: int, executor: Callable[[RunConfig], Executor], show: Callable[[str], None]
) -> list[FanoutResult]:
    """Measure generations of simulated episodes on 4, 16 and ``workers`` workers.

    Args:
        workers: Largest number of workers.
        executor: Factory of an executor on Ray.
        show: Receiver of each row's line as soon as it is measured.
    """
    from pipeline.bench.actor_pool import actor_pool

    # Processes that start at once on a few busy cores take longer to register than Ray waits by default.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "900")
    counts = sorted({count for count in FEWER_WORKERS if count < workers} | {workers})

    def on(count: int) -> Executor:
        return executor(RunConfig.model_validate({"execution": {"workers": count}}))

    started = on(workers)
    rows: list[FanoutResult] = []
    try:
        for count in counts:
            with on(count).pool(SleepingWorker) as pool:
                _wait_for_all(pool, count)
                copies = pool.copies
                ours = _timings(pool.map, count)
                copies = pool.copies - copies
            with actor_pool(SleepingWorker, [SimulatedEpisode((0, i), _WARM_UP_S) for i in range(count)]) as map_jobs:
                references = _timings(map_jobs, count)
            for per_worker, timing, reference in zip(JOBS_PER_WORKER, ours, references, strict=True):
                jobs = per_worker * count
                seconds = [job.seconds for job in simulated_jobs(jobs, 0)]
                rows.append(
                    FanoutResult(
                        count, jobs,
                        busy=sum(seconds) / count / timing.seconds,
                        greedy=sum(seconds) / count / greedy_seconds(seconds, count),
                        reference=sum(seconds) / count / reference.seconds,
                        first_result_s=timing.first_result_s,
                        driver_ms=timing.driver_ms,
                        process_ms=timing.process_ms,
                        reference_driver_ms=reference.driver_ms,
                        copies=copies,
                    )
                )  # fmt: skip
                show(table_row(rows[-1]))
    finally:
        started.close()
    return rows


def simulated_jobs(count: int, generation: int) -> list[SimulatedEpisode]:
    """Make episodes of 0.5 to 1.5 s, uniformly distributed, the same in each generation apart from their IDs.

    The ID tells a late answer of another generation.
    """
    seconds = generator(0, "bench/fanout", count).uniform(*_SECONDS, count)
    return [SimulatedEpisode((generation, i), float(s)) for i, s in enumerate(seconds)]


def check_workers(workers: int) -> None:
    """Refuse more real workers than this machine can hold: it would stall for half an hour and measure nothing.

    Raises:
        ConfigError: There are more than 16 for each core, or more than 32.
    """
    most = min(_MOST_PER_CORE * num_cores(), _MOST)
    if workers > most:
        reason = "more real actors give no further information"
        if most < _MOST:
            reason = f"more than {_MOST_PER_CORE} for each core stall this machine, which has {num_cores()}"
        raise ConfigError(
            f"--workers {workers}: use at most {most}; {reason}. Without it, `bench fanout` simulates up to 2,048"
        )


def bounded_workers(wanted: int | None) -> int:
    """Number of real workers of a bench: one for each core, but no more than are wanted, nor than 32.

    Args:
        wanted: ``execution.workers`` of the run.
    """
    return min(num_cores(), _MOST, wanted or _MOST)


def table_header() -> list[str]:
    """Write the header of the Markdown table."""
    return [
        "| workers | jobs | busy | greedy's bound | of the bound | ActorPool | first result, s | driver, ms a job | "
        "its process, ms a job | ActorPool's driver, ms a job | run twice |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]


def table_row(row: FanoutResult) -> str:
    """Write a row of the Markdown table."""
    return (
        f"| {row.workers} | {row.jobs:,} | {row.busy:.1%} | {row.greedy:.1%} | {row.busy / row.greedy:.1%} | "
        f"{row.reference:.1%} | {row.first_result_s:.2f} | {row.driver_ms:.2f} | {row.process_ms:.2f} | "
        f"{row.reference_driver_ms:.2f} | {row.copies} |"
    )


def fanout_to_json(rows: Sequence[FanoutResult]) -> dict[str, Any]:
    """Convert to JSON values, see ``rows_to_json``."""
    return rows_to_json("share of the workers' time", [asdict(row) for row in rows], "reference")


def _wait_for_all(pool: Pool, workers: int) -> None:
    """Wait until every worker is up, as in all generations after the first."""
    while pool.num_workers < workers:
        for _ in pool.map(SimulatedEpisode((0, i), _WARM_UP_S) for i in range(workers)):
            pass


def _timings(map_jobs: Callable[[Sequence[SimulatedEpisode]], Iterable[Any]], workers: int) -> list[GenerationTiming]:
    """Measure one generation for each number of jobs, after an unmeasured one."""
    _measured(map_jobs, simulated_jobs(_WARM_UP_JOBS * workers, 1))
    return [
        _measured(map_jobs, simulated_jobs(per_worker * workers, generation))
        for generation, per_worker in enumerate(JOBS_PER_WORKER, 2)
    ]


def _measured(
    map_jobs: Callable[[Sequence[SimulatedEpisode]], Iterable[Any]], jobs: Sequence[SimulatedEpisode]
) -> GenerationTiming:
    thread, process, began = time.thread_time(), time.process_time(), time.perf_counter()
    first = None
    for _ in map_jobs(jobs):
        first = first or time.perf_counter() - began
    assert first is not None
    return GenerationTiming(
        time.perf_counter() - began,
        first,
        1000 * (time.thread_time() - thread) / len(jobs),
        1000 * (time.process_time() - process) / len(jobs),
    )
