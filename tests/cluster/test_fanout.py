"""A small ``bench fanout`` on a real Ray."""

from __future__ import annotations

import pytest

from actors.executor import RayExecutor
from pipeline.bench import fanout


@pytest.mark.usefixtures("local_ray")
def test_fanout_bench_measures_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "900")
    monkeypatch.setattr(fanout, "JOBS_PER_WORKER", (6, 15))
    monkeypatch.setattr(fanout, "FEWER_WORKERS", (1, 64))
    monkeypatch.setattr(fanout, "_SECONDS", (0.05, 0.15))
    monkeypatch.setattr(fanout, "_WARM_UP_JOBS", 2)
    lines: list[str] = []
    rows = fanout.bench_fanout(2, lambda config: RayExecutor(config.execution), lines.append)
    assert [(row.workers, row.jobs) for row in rows] == [(1, 6), (1, 15), (2, 12), (2, 30)]
    for row in rows:
        assert 0 < row.busy <= 1 and 0 < row.reference <= 1 and row.busy <= 1.1 * row.greedy <= 1.1
        assert row.first_result_s >= 0.05 and 0 < row.driver_ms <= row.process_ms
    assert lines == [fanout.table_row(row) for row in rows]
