"""The example environments of CONTRIBUTING and the documentation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pipeline.config.schema import EnvConfig
from pipeline.envs.actions import actions_of
from pipeline.envs.gymnasium_env import make_game
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


class Unbounded(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    observation_space, action_space = spaces.Discrete(1), spaces.Box(-np.inf, np.inf, (2,))

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode


@pytest.fixture
def unbounded() -> Iterator[None]:
    gymnasium.register("Unbounded-v0", entry_point=Unbounded, max_episode_steps=3)
    yield
    for name in ("Unbounded-v0", "MyGame-v0"):
        gymnasium.registry.pop(name, None)


def test_example_gives_bounds_to_an_unbounded_action_space(unbounded: None) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/environments.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "TransformAction" in block]
    exec(example, {})
    game = make_game(EnvConfig(id="MyGame-v0", max_episode_steps=9))
    assert actions_of(game.action_space, "MyGame-v0").size == 2
    wrappers = str(game)
    assert "TimeLimit" not in wrappers and "Checker" not in wrappers, "the run's limit and checks are the only ones"
