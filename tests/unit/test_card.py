"""The card of a pack: its example runs as it stands, and a hub takes its header."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import RunConfig
from pipeline.sharing.example import example
from pipeline.sharing.licences import header_of
from pipeline.storage.local import LocalStore
from tests.hub import faults_of_card
from tests.made_run import evaluated, put_trained, random_agent

ROOT = Path(__file__).parents[2]
STEPS = 30

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "car": {"id": "CarRacing-v3"},
    "car-of-other-colours": {
        "id": "CarRacing-v3", "domain_randomize": True, "options": {"lap_complete_percent": 0.5}, "view": "full",
    },
    "take-cover": {"id": "TakeCover", "options": {"resolution": "320x240"}},
    "take-cover-held": {"id": "TakeCover", "action_repeat": 4},
    "rendered": {"id": "CartPole-v1", "options": {"sutton_barto_reward": True}},
    "of-a-package": {"id": "MiniGrid-Empty-8x8-v0", "options": {"agent_pov": True}},
    "of-a-module": {"id": "minigrid:MiniGrid-Empty-8x8-v0"},
}  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_example_plays_the_first_test_episode_as_the_evaluation_does(name: str, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "env": {"max_episode_steps": STEPS, **ENVIRONMENTS[name]},
            "collect": {"episode_steps": STEPS, "policy": "white"},
            "vae": {"z_size": 8},
            "mdnrnn": {"hidden_size": 16, "window": 5},
            "rollouts": {"micro_batch": 2, "precision": "float32"},
        }
    )
    trained = random_agent(config)
    put_trained(LocalStore(tmp_path / "shared"), trained)
    code = example(config, "shared")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(evaluated(trained, [0])[0], abs=1e-9)


@pytest.mark.parametrize(
    ("spdx", "header"),
    [
        ("MIT", "license: mit"),
        ("Apache-2.0", "license: apache-2.0"),
        ("GPL-3.0-or-later", "license: gpl-3.0"),
        (
            "CERN-OHL-S-2.0",
            "license: other\nlicense_name: cern-ohl-s-2.0\nlicense_link: https://spdx.org/licenses/CERN-OHL-S-2.0.html",
        ),
    ],
)
def test_a_licence_is_named_as_the_hub_names_it(spdx: str, header: str) -> None:
    assert header_of(spdx) == header
    assert faults_of_card(f"---\n{header}\n---\n") == []


def test_the_hub_of_the_tests_refuses_what_the_real_one_refuses() -> None:
    for header, words in (
        ("license: MIT", '"license" must be one of'),
        ("license: other", "license_name"),
        ("license: mit\ntags: [1]", "tags"),
        ("license: mit\nmodel-index: [{name: 12}]", "name"),
        ("license: mit\nmodel-index: [{name: a, results: [{task: {type: b}, dataset: {name: c}}]}]", "dataset.type"),
        ("license: [", "no YAML"),
    ):
        assert any(words in fault for fault in faults_of_card(f"---\n{header}\n---\n")), header
    assert faults_of_card("# no header") == ["the card has no header"]
