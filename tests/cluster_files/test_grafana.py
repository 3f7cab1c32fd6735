"""The Grafana dashboard shows exactly the metrics that a run exports."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
from ray.util.metrics import Counter

from actors.telemetry import STAGE_METRICS, WORKER_METRICS
from tests.cluster_files.documents import ROOT

# tests/cluster/test_telemetry.py checks these names on a real node.
EXPORTED = {
    f"ray_world_models_{name}{'_total' if kind is Counter else ''}": labels
    for metrics, labels in ((STAGE_METRICS, ("run", "stage")), (WORKER_METRICS, ("run",)))
    for name, (kind, _) in metrics.items()
}


@pytest.fixture
def dashboard() -> dict[str, Any]:
    model: dict[str, Any] = json.loads((ROOT / "cluster/grafana/world-models.json").read_text())
    return model


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def metrics(expression: str) -> list[str]:
    return re.findall(r"\bray_\w+", expression)


def test_dashboard_shows_exactly_the_exported_metrics(dashboard: dict[str, Any]) -> None:
    shown = [name for expression in expressions(dashboard) for name in metrics(expression)]
    assert sorted(shown) == sorted(EXPORTED)
    (chosen,) = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["name"] == "run"]
    assert set(metrics(chosen)) <= set(EXPORTED)


def test_expressions_and_legends_use_tags_of_their_metric(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (name,) = metrics(target["expr"])
            (kept,) = re.findall(r"^(?:sum|max) by \(([\w, ]+)\)", target["expr"])
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named == set(kept.split(", ")), target
            assert named <= set(EXPORTED[name]), target


def test_counters_are_summed_over_drivers_and_gauges_are_not(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        (name,) = metrics(expression)
        assert expression.startswith("sum by" if name.endswith("_total") else "max by"), expression


def test_panels_have_unique_ids_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = {
        panel["title"]: {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for panel in panels
        for at in [panel["gridPos"]]
    }
    assert len(cells) == len(panels)
    assert all(0 <= x < 24 for some in cells.values() for x, _ in some), "Grafana's grid has 24 columns"
    for one, other in combinations(cells, 2):
        assert not cells[one] & cells[other], f"{one} and {other}"


def test_every_query_uses_the_chosen_source_and_is_valid(dashboard: dict[str, Any]) -> None:
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for asking in (variables["run"], *dashboard["panels"]):
        assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all('{run=~"$run"}' in expression for expression in expressions(dashboard))
    used = {name for text in expressions(dashboard) for name in re.findall(r"\$(\w+)", text)}
    assert used - {"__rate_interval"} <= variables.keys()
