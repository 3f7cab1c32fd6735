"""The agents that come with the package: sound, small, and as good as their cards say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.agent import Agent
from pipeline.cli.main import main
from pipeline.config.identity import cpu_kind
from pipeline.data.artifacts import EVALUATION, TEST_EPISODES, newest_record
from pipeline.reporting.findings import read_test_returns
from pipeline.sharing import pack
from pipeline.storage.layout import CARD
from pipeline.storage.maintenance import check_run
from pipeline.storage.manifest import require_manifest
from pipeline.storage.pretrained import folder_of_pretrained, open_pretrained, pretrained_names

README = Path(__file__).parents[2] / "README.md"


def test_documented_agents_come_with_the_package() -> None:
    text = "".join(path.read_text() for path in (README, *(README.parent / "docs").glob("*.md")))
    named = {name for name in re.findall(r"pretrained:(\w+)", text) if name.islower()}
    assert "carracing" in named and named <= {*pretrained_names()}


@pytest.mark.parametrize("name", pretrained_names())
def test_agent_is_sound_and_small_and_its_card_has_its_score(name: str) -> None:
    store = open_pretrained(name)
    assert check_run(store).problems == []
    folder = folder_of_pretrained() / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < pack.MAX_BYTES
    returns = read_test_returns(store, newest_record(store, EVALUATION, TEST_EPISODES))
    shown = returns[min(returns)]
    text = store.read(CARD).decode()
    assert f"{np.mean(shown):.1f} +- {np.std(shown, ddof=1):.1f}" in text
    assert f'Agent.load("pretrained:{name}")' in text


def test_example_of_the_readme_drives_gymnasiums_car_as_the_card_states() -> None:
    """To the bit on the evaluation's kind of CPU; elsewhere the mean of three tracks is near. A lost car earns less."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "pretrained:carracing" in block]
    assert len([line for line in example.splitlines() if line]) == 10
    names: dict[str, Any] = {}
    exec(example, names)
    assert isinstance(names["agent"], Agent)
    store = open_pretrained("carracing")
    stored = read_test_returns(store, newest_record(store, EVALUATION, TEST_EPISODES))["best"][:3]
    returns = [names["score"], *(played(names["agent"], names["env"], track) for track in (1, 2))]
    if require_manifest(store, EVALUATION).info["cpu"] == cpu_kind():
        assert returns == stored
    else:
        assert np.mean(returns) == pytest.approx(np.mean(stored), abs=150)


def played(agent: Agent, env: Any, track: int) -> float:
    """Return of an agent on a track."""
    agent.reset(seed=track)
    observation, _ = env.reset(seed=track)
    score, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
        score, over = score + reward, terminated or truncated
    return score


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["compare", "pretrained:carracing"], "860.2 ± 89.4"),
        (["watch", "pretrained:carracing", "--dream", "--out", "{}/drive.mp4"], "{}/drive.mp4"),
        (["evaluate", "smoke", "--agent", "pretrained:carracing", "--run-dir", "{}/run"], "on 2 test tracks"),
        (["export", "pretrained:carracing", "--onnx", "{}/onnx"], "{}/onnx"),
        (["status", "pretrained:carracing"], "best_validation 882.6"),
    ],
)
def test_commands_read_it_like_a_run(
    command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(tmp_path) for argument in command]) == 0
    assert said.format(tmp_path) in capsys.readouterr().out
    for film in tmp_path.glob("*.mp4"):
        with av.open(str(film)) as container:
            assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "smoke", "--run-dir", "{}"],
        ["train-vae", "smoke", "--run-dir", "{}"],
        ["evaluate", "--agent", "mine:Ppo", "smoke", "--run-dir", "{}"],
        ["resume", "{}"],
        ["study", "ablation", "--run-dir", "{}"],
        ["submit", "smoke", "--run-dir", "{}"],
        ["temperatures", "{}"],
        ["compare", "{}", "--out", "{}"],
        ["storage", "copy", "{}", "{}"],
        ["storage", "gc", "{}", "--delete"],
    ],
)
def test_a_command_that_writes_refuses_it_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main([argument.format("pretrained:carracing") for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    said = "pretrained:carracing comes with the package and cannot be changed: copy it first, `world-models storage"
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and said in captured.err
