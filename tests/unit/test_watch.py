"""The video of an episode: the evaluation's drive, with what V sees, V's picture of it, and M's dream."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.agent import Agent
from pipeline.cli.main import main
from pipeline.envs.registry import make_environment
from pipeline.storage.local import LocalStore
from pipeline.view.episode import HEIGHT, episode_shots
from tests.made_run import evaluated, put_trained
from tests.unit.test_agent import STEPS, make_trained


def test_the_drive_is_that_of_the_evaluation_and_its_tiles_are_the_agents() -> None:
    trained = make_trained()
    track = trained.config.tracks.test.start + 2
    moments = list(episode_shots(trained, track, dream=True))
    assert [moment.steps for moment in moments] == list(range(STEPS + 1))
    assert moments[-1].episode_return == evaluated(trained, [2])[0]
    side = HEIGHT // 3
    assert {moment.picture.shape for moment in moments} == {(HEIGHT, 720 + side, 3)}

    def enlarged(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST))

    agent, env = Agent(trained, own_frames=True), make_environment(trained.config.test_env)
    agent.reset(track)
    agent.act(env.reset(track))
    for row, tile in enumerate((agent.frame, agent.reconstruct(), agent.reconstruct())):
        expected = enlarged(tile)
        below_the_name = slice(30, side)
        shown = moments[0].picture[row * side : (row + 1) * side, 720:]
        np.testing.assert_array_equal(shown[below_the_name], expected[below_the_name])
    dreamt = agent.decode(agent.begin_dream(seed=0).step(agent.action).z)[0]
    shown = moments[1].picture[2 * side :, 720:][30:]
    np.testing.assert_array_equal(shown, enlarged(dreamt)[30:])
    env.close()


def test_the_command_writes_a_video_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = make_trained(action_repeat=2)
    put_trained(LocalStore(tmp_path / "made"), trained)
    monkeypatch.chdir(tmp_path)
    before = sorted((tmp_path / "made").rglob("*"))
    assert main(["watch", "made", "--track", "0"]) == 0
    assert capsys.readouterr().out.startswith(f"return {evaluated(trained, [0])[0]:.1f} in {STEPS} steps on track 0")
    film = cv2.VideoCapture(str(tmp_path / "run-0.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    count = 0
    while film.read()[0]:
        count += 1
    assert count == STEPS // 2 + 1
    assert sorted((tmp_path / "made").rglob("*")) == before, "nothing is written to the run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "run-0.mp4"]


def test_a_place_that_is_not_there_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_trained(LocalStore(tmp_path / "made"), make_trained())
    assert main(["watch", str(tmp_path / "made"), "--out", str(tmp_path / "no/drive.mp4")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "nothing")]) == 1
    assert "holds no run" in capsys.readouterr().err
