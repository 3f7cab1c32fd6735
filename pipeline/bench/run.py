"""``world-models bench``: run, and show as a table or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict

from pipeline.bench.agent import bench_agent
from pipeline.bench.environment import bench_env
from pipeline.bench.fanout import bench_fanout, fanout_figures, table_header
from pipeline.bench.fidelity import bench_fidelity, fidelity_figures, fidelity_lines
from pipeline.bench.generation import bench_generation
from pipeline.bench.measure import Comparison
from pipeline.bench.stages import bench_collect, bench_dream
from pipeline.bench.storage import bench_storage
from pipeline.bench.table import FANOUT, FIDELITY, GENERATION, NEED_A_RUN
from pipeline.bench.trained import TrainedRun
from pipeline.bench.training import bench_train_mdnrnn, bench_train_vae
from pipeline.config.identity import cpu_kind
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor
from pipeline.storage.store import Store

BENCHES: dict[str, Callable[[float], Comparison]] = {
    "env": bench_env,
    "agent": bench_agent,
    "collect": bench_collect,
    "train-vae": bench_train_vae,
    "train-mdnrnn": bench_train_mdnrnn,
    "dream": bench_dream,
    "storage": bench_storage,
}


def run_benches(
    names: Collection[str],
    *,
    seconds: float,
    workers: int,
    as_json: bool,
    store: Store | None,
    executor: Callable[[RunConfig], Executor],
) -> None:
    """Run benches; print a Markdown table, then, if asked, one line of JSON a bench.

    Args:
        names: of ``BENCHES``, or ``GENERATION``, ``FIDELITY`` or ``FANOUT``.
        seconds: that each side is measured for, in all.
        workers: that ``FANOUT`` goes up to.
        as_json: whether to print JSON.
        store: of the run whose controllers ``NEED_A_RUN`` drive; None where none of them is asked for.
        executor: makes the one that they drive them on.

    Raises:
        ConfigError: the run has no evolution yet.
    """
    # Before anything takes its minutes.
    trained = None if NEED_A_RUN.isdisjoint(names) or store is None else TrainedRun.read(store)
    compared = [name for name in names if name not in (FIDELITY, FANOUT)]
    machine = f"{cpu_kind()}, {os.cpu_count()} cores"
    figures, notes = [], []
    if compared:
        print(f"{machine}; each side measured for {seconds:g} s, in turns\n")
        print("| bench | unit | threads | reference | | ours | | ratio |\n|---|---|--:|---|--:|---|--:|--:|")
    for name in compared:
        if name == GENERATION:
            assert trained is not None
            result = bench_generation(seconds, trained, executor)
        else:
            result = BENCHES[name](seconds)
        for line in table_rows(result):
            print(line, flush=True)
        figures.append({**_figures(result), "ratio": result.ratio})
        notes += result.notes
    if notes:
        print("\n" + "\n".join(notes))
    if FIDELITY in names:
        assert trained is not None and store is not None
        rows = bench_fidelity(trained, store, executor)
        print("\n" + "\n".join(fidelity_lines(rows)))
        figures.append(fidelity_figures(rows))
    if FANOUT in names:
        print(f"\n{machine}; the actors are real, their episodes are simulated: each sleeps for 0.5 to 1.5 s\n")
        print("\n".join(table_header()))
        figures.append(fanout_figures(bench_fanout(workers, executor, lambda line: print(line, flush=True))))
    if as_json:
        for line in map(json.dumps, figures):
            print(line)


def table_rows(result: Comparison) -> list[str]:
    """Lines of a Markdown table: the comparison, then what was measured beside it."""
    start = f"| {result.bench} | {result.unit} | {result.threads} | {result.reference_what} | {result.reference:,.0f} "
    lines = [f"{start}| {result.ours_what} | {result.ours:,.0f} | {result.ratio:.2f} |"]
    for what, rate in result.others.items():
        lines.append(f"| | | | | | {what} | {rate:,.0f} | {rate / result.reference:.2f} |")
    return lines


def _figures(result: Comparison) -> dict[str, object]:
    figures = asdict(result)
    more = figures.pop("more")
    return {**figures, **more}
