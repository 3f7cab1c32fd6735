"""``world-models status --watch``: bars, rates, time left, curves and scores, drawn again every few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import sleep
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.base.formatting import counted, duration, number, score
from pipeline.view.runs import Runs

EVERY_S = 2.0

_STEPS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 24
_STATES = {
    "complete": Text("done", "green"),
    "under way": Text("runs", "bold"),
    "stopped": Text("stopped", "yellow"),
    "out of date": Text("out of date", "yellow"),
    "waiting": Text("waits", "dim"),
    "not in this folder": Text("-", "dim"),
}


def watch(runs: Runs, console: Console) -> None:
    """Show runs until all of them are over, or until Ctrl-C.

    Args:
        runs: A run, or the runs of a study.
        console: Terminal. On other outputs the picture is drawn once.
    """
    if not console.is_terminal:
        console.print(picture(runs.describe()))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            described = runs.describe()
            live.update(picture(described), refresh=True)
            if all(is_over(run) for run in described["runs"]):
                return
            sleep(EVERY_S)


def is_over(run: Mapping[str, Any]) -> bool:
    """Whether nothing more is to be expected of a run: it is complete or damaged, or its driver has ended."""
    if run.get("waiting"):
        return False
    if "problem" in run:
        return not run["passing"]
    return run["now"] is None or not run["alive"]


def picture(described: Mapping[str, Any]) -> RenderableType:
    """Draw the description of ``Runs.describe``; readable at 80 columns."""
    runs = described["runs"]
    if described["study"] is None:
        return Group(*map(_run, runs))
    under_way = [run for run in runs if run.get("alive")][:1]
    return Group(Text(f"study {described['study']}", "bold"), _overview(runs), *map(_run, under_way))


def _overview(runs: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A line for each run of a study: a terminal has too few lines for all curves."""
    table = Table.grid(padding=(0, 1))
    for _ in range(3):
        table.add_column(overflow="fold")
    for run in runs:
        if run.get("waiting"):
            table.add_row(f" {run['name']}", Text("not begun", "dim"))
        elif "problem" in run:
            table.add_row(f" {run['name']}", Text(run["problem"], "red"))
        else:
            scores = (f"{name} {score(found)}" for name, found in (run["scores"] or {}).items())
            table.add_row(f" {run['name']}", _state(run), next(scores, _now(run)))
    return table


def _state(run: Mapping[str, Any]) -> Text:
    """Complete, the present stage, or the stage in which the run stopped."""
    if run["now"] is None:
        return Text("done", "green")
    title = run["now"]["title"]
    return Text(title, "bold") if run["alive"] else Text(f"stopped in {title}", "yellow")


def _now(run: Mapping[str, Any]) -> str:
    now = run["now"]
    if now is None or not now["total"]:
        return ""
    left = f", {duration(now['left_s'])} left" if run["alive"] and now["left_s"] is not None else ""
    return f"{_done(now)}{left}"


def _run(run: Mapping[str, Any]) -> RenderableType:
    if run.get("waiting"):
        return Text(f"{run['name']}: not begun", "dim")
    if "problem" in run:
        return Text(f"{run['name']}: {run['problem']}", "red")
    title = Text(f"{run['name'] or run['title']}", "bold")
    title.append(f"  {run['environment']}, seed {run['seed']}, {_driver(run)}", "not bold")
    return Group(title, _stages(run), *_curves(run), *_scores(run))


def _driver(run: Mapping[str, Any]) -> str:
    if run["seen_s"] is None:
        return "no driver"
    if not run["alive"]:
        return "no driver"
    workers = f", {counted(run['workers'], 'worker')}" if run["workers"] else ""
    return f"driver alive {duration(run['seen_s'])} ago{workers}"


def _stages(run: Mapping[str, Any]) -> RenderableType:
    """A line for each stage, and below them the rate of the present one."""
    table, rate = Table.grid(padding=(0, 1)), ""
    for _ in range(4):
        table.add_column(no_wrap=True)
    for stage in run["stages"]:
        now = run["now"] if run["now"] is not None and run["now"]["title"] == stage["title"] else None
        bar: RenderableType = ""
        facts = "" if stage["seconds"] is None else duration(stage["seconds"])
        if now is not None and now["total"]:
            bar = ProgressBar(total=now["total"], completed=now["done"], width=22)
            facts = _done(now)
            if now["rate"] is not None:
                rate = _rate(now)
        table.add_row(f" {stage['title']}", _STATES[stage["state"]], bar, facts)
    return Group(table, Text(f" {rate}")) if rate else table


def _done(now: Mapping[str, Any]) -> str:
    digits = 0 if now["done"] % 1 == 0 else 1  # parts of an epoch
    return f"{number(now['done'], digits)} of {number(now['total'])} {now['unit']}"


def _rate(now: Mapping[str, Any]) -> str:
    rate, unit = now["rate"], now["unit"].removesuffix("s")
    speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}"
    return f"{speed}, {duration(now['left_s'])} left" if now["left_s"] is not None else speed


def _curves(run: Mapping[str, Any]) -> list[RenderableType]:
    """A line for each curve: its shape, and its last value."""
    table = Table.grid(padding=(0, 1))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for curve in run["curves"]:
        for index, series in enumerate(curve["series"]):
            x, y = series["points"][-1]
            values = [point[1] for point in series["points"]]
            lost = f", {series['not_finite']} not finite" if series["not_finite"] else ""
            table.add_row(
                f" {curve['title'].partition(':')[0]}" if index == 0 else "",
                series["name"],
                Text(sparkline(values), "cyan"),
                f"{number(y, 1 if abs(y) >= 10 else 3)} at {curve['x']} {number(x)}{lost}",
            )
    return [table] if run["curves"] else []


def sparkline(values: Sequence[float], width: int = _CURVE_WIDTH) -> str:
    """Draw finite values as a line of blocks; more than ``width`` values are sampled evenly."""
    count = min(len(values), width)
    shown = [values[round(index * (len(values) - 1) / max(1, count - 1))] for index in range(count)]
    low, high = min(shown), max(shown)
    scale = (len(_STEPS) - 1) / (high - low) if high > low else 0.0
    return "".join(_STEPS[round((value - low) * scale)] for value in shown)


def _scores(run: Mapping[str, Any]) -> list[RenderableType]:
    return [
        Text(f" {name}: {score(found)} on {found['episodes']} test tracks", "green")
        for name, found in (run["scores"] or {}).items()
    ]
