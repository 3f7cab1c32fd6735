"""The live view of a run on the terminal: at 80 columns, under way, complete, and of a study."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.base.errors import StorageError
from pipeline.cli import live
from pipeline.cli.live import is_over, picture, sparkline, watch
from pipeline.cli.main import main
from pipeline.config.presets import dump
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.sharing.results import copy_results
from pipeline.stages.table import STAGES
from pipeline.storage.layout import CONFIG, begun_key
from pipeline.storage.local import LocalStore
from pipeline.storage.pretrained import open_pretrained
from pipeline.view.runs import Runs, describe
from tests.counting import counting_config
from tests.made_run import make_config, put_agent, put_data

UNDER_WAY: dict[str, Any] = {
    "name": "",
    "title": "laptop",
    "environment": "CarRacing-v3",
    "seed": 1,
    "alive": True,
    "workers": 2,
    "seen_s": 3.0,
    "stages": [
        {"title": "collect", "state": "complete", "seconds": 65.0},
        {"title": "train-vae", "state": "complete", "seconds": 700.0},
        {"title": "evolve", "state": "under way", "seconds": None},
        {"title": "evaluate", "state": "waiting", "seconds": None},
    ],
    "now": {"title": "evolve", "unit": "generations", "done": 50, "total": 200, "rate": 0.2, "left_s": 750.0},
    "curves": [
        {
            "title": "C: return",
            "x": "generation",
            "series": [
                {"name": "mean", "points": [(n, 10.0 * n) for n in range(1, 51)], "not_finite": 0},
                {"name": "validation", "points": [(10, 120.0), (20, 250.5)], "not_finite": 0},
            ],
        }
    ],
    "scores": None,
}


def drawn(described: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(picture(described))
    return out.getvalue()


def test_a_run_under_way_shows_bar_rate_time_left_and_curves_at_80_columns() -> None:
    text = drawn({"study": None, "runs": [UNDER_WAY]})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "laptop  CarRacing-v3, seed 1, driver alive 3.0 s ago, 2 workers" in lines[0]
    (evolve,) = [line for line in lines if line.startswith(" evolve")]
    assert "50 of 200 generations" in evolve and "5.0 s/generation, 12 min 30 s left" in text
    (validation,) = [line for line in lines if "validation" in line]
    assert "▁█" in validation and "250.5 at generation 20" in validation


def test_progress_within_an_epoch_is_shown() -> None:
    now = {"title": "evolve", "unit": "epochs", "done": 0.42, "total": 1, "rate": 0.0025, "left_s": 232.0}
    text = drawn({"study": None, "runs": [{**UNDER_WAY, "now": now}]})
    assert "0.4 of 1 epochs" in text and "400.0 s/epoch, 3 min 52 s left" in text


def test_a_study_shows_every_run_and_what_is_wrong_with_one() -> None:
    waiting = {"name": "b", "where": "x", "waiting": True}
    broken = {"name": "c", "where": "x", "problem": "x/config.yaml is damaged", "passing": False}
    silent = {"name": "d", "where": "x", "problem": "s3://x does not answer", "passing": True}
    tested = {"mean": 861.26, "sd": 89.4, "low": 841.3, "high": 876.8, "episodes": 100}
    done = {**UNDER_WAY, "name": "e", "now": None, "alive": False, "scores": {"best": tested}}
    stopped = {**UNDER_WAY, "name": "f", "alive": False}
    lines = drawn({"study": "arms", "runs": [{**UNDER_WAY, "name": "a"}, waiting, broken, silent, done, stopped]})
    assert [line.rstrip() for line in lines.splitlines()[:7]] == [
        "study arms",
        " a evolve                   50 of 200 generations, 12 min 30 s left",
        " b not begun",
        " c x/config.yaml is damaged",
        " d s3://x does not answer",
        " e done                     best 861.3 +- 89.4 (95 % interval 841.3 to 876.8)",
        " f stopped in evolve        50 of 200 generations",
    ]
    assert lines.splitlines()[7].startswith("a  CarRacing-v3"), "the run under way, with its stages and curves"
    assert [is_over(run) for run in (UNDER_WAY, waiting, broken, silent)] == [False, False, True, False]
    assert is_over({**UNDER_WAY, "alive": False}) and is_over({**UNDER_WAY, "now": None})


def test_long_names_and_numbers_are_whole_at_80_columns() -> None:
    points = [(generation, 900.0 * math.sin(generation / 1_000)) for generation in range(1, 1_801)]
    series = [
        {"name": "best candidate", "points": points, "not_finite": 0},
        {"name": "validation", "points": points, "not_finite": 12},
    ]
    steps = {"title": "V: loss, round 2", "x": "step", "series": [{**series[0], "name": "held out"}]}
    returns = {"title": "C, round 2: return", "x": "generation", "series": series}
    text = drawn({"study": None, "runs": [{**UNDER_WAY, "curves": [returns, steps]}]})
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "C, round 2" in text and "best candidate" in text and "at generation 1,800" in text
    assert "12 not finite" in " ".join(text.split()), "a longer text takes a second line"


def test_the_shape_of_a_curve() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0]) == "▁" and sparkline([2, 2, 2]) == "▁▁▁"
    assert len(sparkline([float(n) for n in range(1000)])) == 24
    assert sparkline([float(n) for n in range(1000)])[-1] == "█"


def test_numbers_that_are_not_finite_are_named_and_not_drawn(local_store: LocalStore) -> None:
    config = make_config()
    put_agent(local_store, config)
    put_data(local_store, config)
    rows = [
        {
            "step": step,
            "time": float(step),
            "fitness_mean": mean,
            "fitness_max": 2.0 * step,
            "validation_mean": math.nan,
        }
        for step, mean in ((1, 1.0), (2, math.nan), (3, math.inf), (4, 3.0))
    ]
    local_store.write("evolution/metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    described = Runs(local_store.locate()).describe()
    json.dumps(described, allow_nan=False)  # browsers read no NaN
    (curve,) = [curve for curve in described["runs"][0]["curves"] if curve["title"] == "C: return"]
    assert [(series["name"], series["points"], series["not_finite"]) for series in curve["series"]] == [
        ("best candidate", [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)], 0),
        ("mean", [(1, 1.0), (4, 3.0)], 2),
    ]
    assert "3.000 at generation 4, 2 not finite" in drawn(described)
    score = {"mean": None, "sd": None, "low": 1.0, "high": None, "episodes": 2}
    text = drawn({"study": None, "runs": [{**UNDER_WAY, "scores": {"mean": score}}]})
    assert "mean: not finite +- not finite (95 % interval 1.0 to not finite)" in text


def test_ctrl_c_is_the_usual_way_to_leave(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_agent(local_store, make_config())

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "watch", leave)
    assert main(["status", "--watch", local_store.locate()]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_store_that_does_not_answer_once_is_shown_and_watched_on(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_agent(local_store, make_config())
    runs = Runs(local_store.locate())
    exists, failures = LocalStore.exists, [StorageError("the bucket does not answer")]

    def answer(store: LocalStore, key: str) -> bool:
        if failures:
            raise failures.pop()
        return exists(store, key)

    monkeypatch.setattr(LocalStore, "exists", answer)
    monkeypatch.setattr("pipeline.view.runs.FRESH_S", 0.0)
    waits: list[float] = []
    monkeypatch.setattr(live, "sleep", waits.append)
    out = io.StringIO()
    watch(runs, Console(file=out, force_terminal=True, width=80))
    assert waits == [live.EVERY_S]
    assert "the bucket does not answer" in out.getvalue() and "no driver" in out.getvalue()


def test_it_is_drawn_again_until_the_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    over = {**UNDER_WAY, "now": None, "alive": False}
    states = [UNDER_WAY, UNDER_WAY, over]

    class Described:
        def describe(self) -> dict[str, Any]:
            return {"study": None, "runs": [states.pop(0)]}

    waits: list[float] = []
    monkeypatch.setattr(live, "sleep", waits.append)
    out = io.StringIO()
    watch(Described(), Console(file=out, force_terminal=True, width=80))  # type: ignore[arg-type]
    assert states == [] and waits == [live.EVERY_S] * 2
    assert "no driver" in out.getvalue()


def test_a_pack_is_complete_and_lacks_stages_until_a_copy_of_it_is_resumed(tmp_path: Path) -> None:
    described = Runs("pretrained:carracing").describe()
    (run,) = described["runs"]
    absent = {stage["title"] for stage in run["stages"] if stage["state"] == "not in this folder"}
    assert absent == {"collect", "encode", "report"} and run["now"] is None and is_over(run)
    assert {stage["state"] for stage in run["stages"] if stage["title"] not in absent} == {"complete"}
    assert "stopped" not in drawn(described) and "waits" not in drawn(described)
    copy = LocalStore(shutil.copytree(open_pretrained("carracing").root, tmp_path / "copy"))
    copy.create(begun_key("rollouts"), b"{}")
    assert describe(copy)["now"]["title"] == "collect"
    copy_results(open_pretrained("carracing"), results := LocalStore(tmp_path / "results"))
    assert describe(results)["now"] is None


def test_the_command_shows_a_real_run(local_store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    local_store.write(CONFIG, dump(counting_config()).encode())
    run_stages(counting_config(), local_store, InProcessExecutor(), STAGES[:6])
    assert main(["status", "--watch", str(local_store.root)]) == 0
    text = capsys.readouterr().out
    assert "evaluate" in text and "done" in text and "test tracks" in text
    assert Runs(str(local_store.root)).describe()["runs"][0]["now"]["title"] == "report"
