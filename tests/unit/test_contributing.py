"""The example environments of CONTRIBUTING and the documentation, run through every stage."""

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


@pytest.mark.parametrize(
    ("page", "module", "env_id"), [("CONTRIBUTING.md", "dot", "Dot"), ("docs/environments.md", "drift", "Drift-v0")]
)
def test_example_environments_run_through_all_stages(
    page: str,
    module: str,
    env_id: str,
    tmp_path: Path,
    local_store: LocalStore,
    executor: InProcessExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (example,) = [block for block in blocks if f"class {module.title()}" in block]
    (tmp_path / f"{module}.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    config = counting_config({"env.id": f"{module}:{env_id}", "collect.policy": "repeat"})
    check_environment(config)
    run_stages(config, local_store, executor, STAGES)
    assert read_manifest(local_store, "report") is not None
