"""A return in dreams is never shown without M's recall of ends, and never as a return in the environment."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import SessionEnded
from pipeline.base.progress import Update
from pipeline.cli.status_text import describe_run
from pipeline.config.presets import dump
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages import evolve
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import require_manifest
from tests.counting import counting_config

KEYS: dict[str, Any] = {
    "mdnrnn.done_weight": 1.0, "evolve.environment": "dream", "evolve.select": "dream", "evolve.validation_dreams": 5,
    "dream.max_steps": 7, "dream.micro_batch": 4, "dream.lanes": 8, "dream.end_probability": 0.7,
}  # fmt: skip
ROUNDS = {"rounds.count": 2, "rounds.episodes": 4, "rounds.generations": 3, "rounds.mdnrnn_epochs": 1,
          "evolve.episodes_from": [{"generation": 3, "episodes": 3}]}  # fmt: skip
TRUST = r"\(?M predicts (\d+%|an unknown share) of the ends"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A run of two rounds in dreams."""
    config = counting_config({**KEYS, **ROUNDS})
    made = LocalStore(tmp_path_factory.mktemp("run"))
    made.write("config.yaml", dump(config).encode())
    run_stages(config, made, InProcessExecutor())
    return made


def test_status_shows_the_return_with_the_recall(store: LocalStore) -> None:
    lines = describe_run(store).splitlines()
    assert [bool(re.search(TRUST, line)) for line in lines if "best_validation" in line] == [True, True]
    assert all(re.search(TRUST, line) for line in lines if line.startswith("evolution:") or "best in dreams" in line)
    assert sum("best in dreams" in line for line in lines) == 1


def test_report_shows_both_with_the_numbers_of_the_last_round(store: LocalStore) -> None:
    numbers = json.loads(store.read("report/report.json"))
    page = " ".join(html.unescape(store.read("report/index.html").decode()).split())
    assert re.search(rf"chosen on 5 dreams, where it reached [\d.,]+ {TRUST}", page)
    assert len(re.findall(rf"fitness in dreams goes from .{{0,300}}? {TRUST}", page)) >= 2
    assert numbers["config"]["evolve"]["episodes"] == 3 and "mean return over 3 dreams" in page
    assert "training episode" not in page, "no candidate was scored in the environment"
    assert "The same, in dreams" in page
    for row, folder in zip(numbers["rounds"], ("evolution", "round-002/evolution"), strict=True):
        info = require_manifest(store, folder).info
        assert row["dream"] == info["best_validation"] != row["validation"]
    chosen = next(row for row in numbers["history"] if row["dream_mean"] == numbers["rounds"][1]["dream"])
    assert numbers["rounds"][1]["validation"] == chosen["validation_mean"]


def test_progress_and_session_end_show_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[Update] = []

    @contextmanager
    def watched(*_: Any) -> Iterator[Any]:
        yield updates.append

    config = counting_config({**KEYS, "evolve.max_seconds": 1e-9})
    local = LocalStore(tmp_path)
    run_stages(config, local, InProcessExecutor(), STAGES[:4])
    monkeypatch.setattr(evolve, "watched", watched)
    with pytest.raises(SessionEnded, match=rf"best validation so far none, in dreams {TRUST}"):
        run_stages(config, local, InProcessExecutor(), STAGES[:5])
    assert re.search(rf"in dreams {TRUST}", updates[-1].shown["fitness"]), "from the first generation on"
