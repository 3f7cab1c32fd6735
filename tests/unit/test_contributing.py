"""The environment that CONTRIBUTING shows, taken through every stage that learns from it and drives it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pipeline.envs.registry import check_environment
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest
from tests.counting import counting_config

ROOT = Path(__file__).parents[2]


def test_the_example_environment_runs_through_all_stages(
    tmp_path: Path, local_store: LocalStore, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "class Dot" in block]
    (tmp_path / "dot.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "dot", raising=False)
    config = counting_config({"env.id": "dot:Dot"})
    check_environment(config)
    run_stages(config, local_store, executor, STAGES)
    assert read_manifest(local_store, "report") is not None
