"""The arithmetic and the output of the benches; tests do not check measured values."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from pipeline.bench import fanout, run, simulated_fanout, table
from pipeline.bench.drives import record_drive
from pipeline.bench.measure import BenchResult, Side, compare
from pipeline.cli import bench as bench_command
from pipeline.cli import main as cli
from pipeline.execution.in_process import InProcessExecutor
from pipeline.storage.local import LocalStore


def test_sides_alternate_and_have_separate_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    turns: list[str] = []

    def side(name: str, units: int, seconds: float) -> Side:
        def work() -> int:
            nonlocal now
            now += seconds
            turns.append(name)
            return units

        return Side(name, work)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    result = compare("b", "u/s", side("slow", 3, 1.0), side("fast", 10, 0.5), seconds=6, threads=1)
    assert turns[:2] == ["slow", "fast"], "each is warmed up once"
    assert turns[2:] == (["slow"] * 2 + ["fast"] * 4) * 3
    assert (result.reference, result.ours) == (3.0, 20.0)
    assert result.ratio == pytest.approx(20 / 3)


def run_benches(*names: str, workers: int = 1, store: LocalStore | None = None) -> None:
    """Run benches for a second each, and print JSON."""
    run.run_benches(
        names, seconds=1, workers=workers, as_json=True, store=store, bucket=None,
        executor=lambda config: InProcessExecutor(),
    )  # fmt: skip


def test_last_line_is_one_json_object_with_the_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = BenchResult("env", "steps/s", "a", "b", 4.0, 10.0, 1, others={"c": 6.0}, more={"seconds": 7.5})
    monkeypatch.setitem(run.BENCHES, "env", lambda seconds: comparison)
    run_benches("env")
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert (last["bench"], last["unit"], last["reference"], last["ours"], last["ratio"]) == (
        "env", "steps/s", 4.0, 10.0, 2.5,
    )  # fmt: skip
    assert last["seconds"] == 7.5
    assert last["others"] == {"c": 6.0}
    assert "| env | steps/s | 1 | a | 4 | b | 10 | 2.50 |" in lines
    assert "| | | | | | c | 6 | 1.50 |" in lines


def test_command_lists_every_bench() -> None:
    assert sorted([*run.BENCHES, table.GENERATION, table.FIDELITY, table.STORAGE, table.FANOUT]) == sorted(table.HELP)


def test_run_without_an_evolution_is_refused_before_any_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.BENCHES, "env", lambda seconds: pytest.fail("measured something first"))
    for name in table.NEED_A_RUN:
        with pytest.raises(ConfigError, match="no evolution"):
            run_benches("env", name, store=LocalStore(str(tmp_path)))


def test_recorded_episode_follows_the_road_and_replays_exactly() -> None:
    drive = record_drive(1, max_steps=200)
    assert drive.episode_return > 100
    env = gymnasium.make("CarRacing-v3")
    env.unwrapped._render = lambda mode: np.zeros((96, 96, 3), np.uint8)
    env.reset(seed=1)
    assert sum(float(env.step(action)[1]) for action in drive.actions) == drive.episode_return


def test_additional_side_takes_its_turns() -> None:
    side = Side("a", lambda: 1)
    result = compare("b", "u", side, Side("b", lambda: 2), seconds=0.01, threads=1, others=[Side("c", lambda: 3)])
    assert list(result.others) == ["c"]
    assert result.others["c"] > 0


def test_tiny_runs_first_if_there_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, str, str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        bench_command, "run_config", lambda config, run_dir, command: ran.append((config.name, run_dir, command))
    )
    monkeypatch.setitem(run.BENCHES, "env", lambda seconds: BenchResult("env", "u", "a", "b", 1.0, 2.0, 1))
    assert cli.main(["bench", "env"]) == 0
    assert ran == []
    assert cli.main(["bench", "generation"]) == 2
    assert ran == [("tiny", "runs/tiny", "run")]
    assert "no evolution" in capsys.readouterr().err, "the stand-in for tiny made no run"
    assert cli.main(["bench", "generation", "--run-dir", "mine"]) == 2
    assert len(ran) == 1, "a named run is not made"


def test_greedy_seconds_match_a_hand_calculation_and_bounds() -> None:
    assert simulated_fanout.greedy_seconds([3, 3, 2, 2, 2], 2) == 3 + 2 + 2  # 3 2 2 | 3 2
    assert simulated_fanout.greedy_seconds([1, 1, 1, 3], 3) == 1 + 3
    seconds = [job.seconds for job in fanout.simulated_jobs(1024, 1)]
    for workers in (16, 64, 256, 2000):
        took = simulated_fanout.greedy_seconds(seconds, workers)
        assert max(*seconds, sum(seconds) / workers) <= took <= sum(seconds) / workers + max(seconds)


def test_simulated_episodes_take_uniformly_0_5_to_1_5_seconds() -> None:
    seconds = np.array([job.seconds for job in fanout.simulated_jobs(4096, 1)])
    assert 0.5 <= seconds.min() < 0.51 and 1.49 < seconds.max() <= 1.5
    assert np.quantile(seconds, [0.25, 0.5, 0.75]) == pytest.approx([0.75, 1.0, 1.25], abs=0.03)
    again = fanout.simulated_jobs(4096, 2)
    assert [job.seconds for job in again] == seconds.tolist(), "the same each time"
    assert {job.id for job in again}.isdisjoint(job.id for job in fanout.simulated_jobs(4096, 1)), "except their ids"


def test_fanout_shows_each_row_and_its_json_has_the_last_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        fanout.FanoutResult(16, 1024, 0.9, 0.99, 0.8, 0.5, 0.4, 0.9, 0.6, 0),
        fanout.FanoutResult(32, 4096, 0.95, 0.98, 0.76, 0.6, 0.15, 0.3, 0.4, 2),
    ]

    def measured(workers: int, executor: object, show: Callable[[str], None]) -> list[fanout.FanoutResult]:
        assert workers == 32
        for row in rows:
            show(fanout.table_row(row))
        return rows

    monkeypatch.setattr(fanout, "bench_fanout", measured)
    run_benches("fanout", workers=32)
    lines = capsys.readouterr().out.splitlines()
    assert "| 32 | 4,096 | 95.0% | 98.0% | 96.9% | 76.0% | 0.60 | 0.15 | 0.30 | 0.40 | 2 |" in lines
    assert any("their episodes are simulated" in line for line in lines)
    last = json.loads(lines[-1])
    assert (last["bench"], last["workers"], last["jobs"], last["busy"], last["driver_ms"]) == (
        "fanout", 32, 4096, 0.95, 0.15,
    )  # fmt: skip
    assert last["ratio"] == pytest.approx(0.95 / 0.76)
    assert len(last["rows"]) == 2


@pytest.mark.parametrize(
    ("cores", "most", "reason"),
    [
        (1, 16, "more than 16 for each core stall this machine, which has 1"),
        (8, 32, "more real actors give no further information"),
    ],
)
def test_too_many_real_workers_for_the_machine_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cores: int, most: int, reason: str
) -> None:
    monkeypatch.setattr(fanout, "num_cores", lambda: cores)
    assert cli.main(["bench", "fanout", "--workers", str(most + 1)]) == 2
    assert f"--workers {most + 1}: use at most {most}; {reason}" in capsys.readouterr().err
    fanout.check_workers(most)


@pytest.mark.parametrize(("cores", "wanted", "expected"), [(4, None, 4), (4, 2, 2), (4, 64, 4), (256, None, 32)])
def test_benches_start_at_most_a_worker_for_each_core_and_no_more_than_32(
    monkeypatch: pytest.MonkeyPatch, cores: int, wanted: int | None, expected: int
) -> None:
    monkeypatch.setattr(fanout, "num_cores", lambda: cores)
    assert fanout.bounded_workers(wanted) == expected


SMALL = simulated_fanout.Setting(16, 2, 4, "uniform")


def test_table_of_many_workers_repeats_except_the_schedulers_time() -> None:
    first, second = (simulated_fanout.simulated_row(SMALL) for _ in range(2))
    assert dataclasses.replace(first, scheduler_us=0.0) == dataclasses.replace(second, scheduler_us=0.0)
    assert first.scheduler_us > 0


@pytest.mark.parametrize(
    ("workers", "lanes", "jobs_per_lane", "durations"),
    [
        (16, 1, 4, "uniform"),
        (64, 1, 8, "uniform"),
        (64, 1, 4, "heavy-tailed"),
        (256, 1, 8, "uniform"),
        (64, 16, 4, "uniform"),
        (64, 16, 8, "heavy-tailed"),
    ],
)
def test_workers_are_as_busy_as_greedy_scheduling_keeps_them(
    workers: int, lanes: int, jobs_per_lane: int, durations: str
) -> None:
    """In virtual time: a number of the scheduler, not of this machine."""
    row = simulated_fanout.simulated_row(simulated_fanout.Setting(workers, lanes, jobs_per_lane, durations))
    assert row.of_greedy >= (0.99 if jobs_per_lane >= 8 else 0.97)
    assert row.busy >= 0.99 * row.actor_pool


def test_fanout_without_real_workers_simulates_the_rows_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulated_fanout, "WORKERS", (2, 3))
    monkeypatch.setattr(simulated_fanout, "LANES", (1,))
    monkeypatch.setattr(simulated_fanout, "JOBS_PER_LANE", (4,))
    assert cli.main(["bench", "fanout", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["rows"]
    assert [(row["workers"], row["durations"]) for row in rows] == [
        (2, "uniform"), (2, "heavy-tailed"), (3, "uniform"), (3, "heavy-tailed"),
    ]  # fmt: skip
    assert [line for line in lines if line.startswith(("| 2 |", "| 3 |"))] == [
        simulated_fanout.table_row(simulated_fanout.SimulatedFanout(**row)) for row in rows
    ]
