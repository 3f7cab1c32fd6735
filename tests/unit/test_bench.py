"""The bench's arithmetic and its output; what it measures is no matter for a test."""

from __future__ import annotations

import json

import pytest

from pipeline.bench import measure, run
from pipeline.bench.measure import Comparison, Side, compare


def test_sides_take_turns_and_their_rates_are_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    turns: list[str] = []

    def side(name: str, units: int, seconds: float) -> Side:
        def work() -> int:
            nonlocal now
            now += seconds
            turns.append(name)
            return units

        return Side(name, work)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    result = compare("b", "u/s", side("slow", 3, 1.0), side("fast", 10, 0.5), seconds=6, threads=1)
    assert turns[:2] == ["slow", "fast"], "each is warmed up once"
    assert turns[2:] == (["slow"] * 2 + ["fast"] * 4) * 3
    assert (result.reference, result.ours) == (3.0, 20.0)
    assert result.ratio == pytest.approx(20 / 3)


def test_the_last_line_is_one_json_object_with_the_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run.BENCHES, "env", lambda seconds: Comparison("env", "steps/s", "a", "b", 4.0, 10.0, 1))
    run.run_benches("env", seconds=1, as_json=True)
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert (last["bench"], last["unit"], last["reference"], last["ours"], last["ratio"]) == (
        "env", "steps/s", 4.0, 10.0, 2.5,
    )  # fmt: skip
    assert "| env | steps/s | 1 | a | 4 | b | 10 | 2.50 |" in lines
