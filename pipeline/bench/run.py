"""``world-models bench``: run benches and print a table or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from pipeline.bench import fanout, simulated_fanout
from pipeline.bench.agent import bench_agent
from pipeline.bench.environment import bench_env
from pipeline.bench.fidelity import bench_fidelity, fidelity_lines, fidelity_to_json
from pipeline.bench.generation import bench_generation
from pipeline.bench.measure import BenchResult
from pipeline.bench.stages import bench_collect, bench_dream
from pipeline.bench.storage import bench_storage
from pipeline.bench.table import (
    AGENT,
    COLLECT,
    DREAM,
    ENV,
    FANOUT,
    FIDELITY,
    GENERATION,
    NEED_A_RUN,
    STORAGE,
    TRAIN_MDNRNN,
    TRAIN_VAE,
)
from pipeline.bench.trained import TrainedRun
from pipeline.bench.training import bench_train_mdnrnn, bench_train_vae
from pipeline.config.identity import cpu_kind
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor
from pipeline.storage.run_dir import open_store
from pipeline.storage.store import Store

BENCHES: dict[str, Callable[[float], BenchResult]] = {
    ENV: bench_env,
    AGENT: bench_agent,
    COLLECT: bench_collect,
    TRAIN_VAE: bench_train_vae,
    TRAIN_MDNRNN: bench_train_mdnrnn,
    DREAM: bench_dream,
}


def run_benches(
    names: Collection[str],
    *,
    seconds: float,
    workers: int | None,
    as_json: bool,
    store: Store | None,
    bucket: str | None,
    executor: Callable[[RunConfig], Executor],
) -> None:
    """Run benches; print a Markdown table, then, if requested, one line of JSON per bench.

    Args:
        names: Names from ``BENCHES``, or ``GENERATION``, ``FIDELITY``, ``STORAGE`` or ``FANOUT``.
        seconds: Seconds to measure each side, all turns together.
        workers: Largest number of real workers of ``FANOUT``; None: simulate them.
        as_json: Whether to print JSON.
        store: Store of the run whose controllers the benches in ``NEED_A_RUN`` measure; None if there are none of
            them among ``names``.
        bucket: ``s3://bucket/prefix`` that ``STORAGE`` measures also; None for none.
        executor: Factory of executors.

    Raises:
        ConfigError: The run has no evolution yet.
        StorageError: The bucket does not answer.
    """
    # Checked first, because benches take minutes.
    trained = None if NEED_A_RUN.isdisjoint(names) or store is None else TrainedRun.read(store)
    if STORAGE in names and bucket is not None:
        open_store(bucket).list()
    compared = [name for name in names if name not in (FIDELITY, FANOUT)]
    machine = f"{cpu_kind()}, {os.cpu_count()} cores"
    results, notes = [], []
    if compared:
        print(f"{machine}; each side measured for {seconds:g} s, in turns\n")
        print("| bench | unit | threads | reference | | ours | | ratio |\n|---|---|--:|---|--:|---|--:|--:|")
    for name in compared:
        if name == GENERATION:
            assert trained is not None
            result = bench_generation(seconds, trained, executor)
        elif name == STORAGE:
            result = bench_storage(seconds, bucket)
        else:
            result = BENCHES[name](seconds)
        for line in table_rows(result):
            print(line, flush=True)
        results.append({**_to_json(result), "ratio": result.ratio})
        notes += result.notes
    if notes:
        print("\n" + "\n".join(notes))
    if FIDELITY in names:
        assert trained is not None and store is not None
        rows = bench_fidelity(trained, store, executor)
        print("\n" + "\n".join(fidelity_lines(rows)))
        results.append(fidelity_to_json(rows))
    if FANOUT in names:
        results.append(_fanout(workers, machine, executor))
    if as_json:
        for line in map(json.dumps, results):
            print(line)


def _fanout(workers: int | None, machine: str, executor: Callable[[RunConfig], Executor]) -> dict[str, Any]:
    def show(line: str) -> None:
        print(line, flush=True)

    if workers is None:
        print(
            f"\nthe workers, the messages and the driver's time are simulated; the scheduler's is that of {machine}\n"
        )
        print("\n".join(simulated_fanout.table_header()))
        return simulated_fanout.to_json(simulated_fanout.simulate_fanout(show))
    print(f"\n{machine}; the actors are real, their episodes are simulated: each sleeps for 0.5 to 1.5 s\n")
    print("\n".join(fanout.table_header()))
    return fanout.fanout_to_json(fanout.bench_fanout(workers, executor, show))


def table_rows(result: BenchResult) -> list[str]:
    """Write rows of a Markdown table: the comparison, then the further sides."""
    start = f"| {result.bench} | {result.unit} | {result.threads} | {result.reference_what} | {result.reference:,.0f} "
    lines = [f"{start}| {result.ours_what} | {result.ours:,.0f} | {result.ratio:.2f} |"]
    for what, rate in result.others.items():
        lines.append(f"| | | | | | {what} | {rate:,.0f} | {rate / result.reference:.2f} |")
    return lines


def _to_json(result: BenchResult) -> dict[str, object]:
    values = asdict(result)
    more = values.pop("more")
    return {**values, **more}
