"""Published results of an environment without a curve and a scale."""

from __future__ import annotations

import json

from pipeline.execution.in_process import InProcessExecutor
from pipeline.stages import report
from pipeline.storage.local import LocalStore
from tests.made_run import make_config, put_data, put_evaluation, put_metrics
from tests.unit.test_report import RETURNS, read_page, shown, without_pictures


def test_published_scores_are_shown_without_a_curve(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config(env__id="TakeCover")
    put_data(local_store, config)
    put_metrics(local_store)
    put_evaluation(local_store, 6, RETURNS)
    report.run(config, local_store, executor)
    text = shown(read_page(local_store))
    published = json.loads(local_store.read("report/report.json"))["published"]
    assert [(s["mean"], s["sd"]) for s in published["scores"]] == [
        (1092, 556), (973, 540), (991, 507), (840, 524), (210, 108)
    ]  # fmt: skip
    assert published["curve"] == [] and published["scale"] is None
    assert "1,092 ± 556" in text and "https://github.com/Sha01in/world-models-jax" in text
    words = without_pictures(text)
    assert (
        "no published results" not in words and "The paper's points" not in words and "and of the paper's" not in words
    )
