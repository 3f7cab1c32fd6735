"""docs/data.md: its code blocks run in order, and their results equal those of other code."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.cli.main import main
from pipeline.cli.run import run_config
from pipeline.comparison.arms import read_result
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import MDNRNN, mdnrnn_weights
from pipeline.data.episodes import Episode, LatentEpisode
from pipeline.data.shards import read_episodes, read_latents
from pipeline.data.trained_agent import TrainedAgent
from pipeline.models import weights
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from pipeline.storage.saved_config import saved_config
from tests.counting import ACTION_SIZE, counting_config, frame_of, track_and_step

PAGE = Path(__file__).parents[2] / "docs/data.md"
PICTURES = {"frames.png", "walk.png", "dream.png", "stepped.png", "curve.png", "study.png"}
Names = dict[str, Any]


def config(**keys: Any) -> RunConfig:
    """Like the preset tiny: M predicts neither rewards nor ends, and the controller sees mu."""
    return counting_config({"controller.z": "mu", **{key.replace("__", "."): value for key, value in keys.items()}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs that the page names."""
    folder = tmp_path_factory.mktemp("page")
    first = str(folder / "runs/tiny")
    for stage in STAGES:
        if stage.name != "report":
            run_config(config(), first, stage.name)
    run_config(config(mdnrnn__reward_weight=1.0), str(folder / "runs/dream"), "train-mdnrnn", [first])
    for name in ("evolve", "evaluate"):
        run_config(config(controller__features="z"), str(folder / "runs/z-only"), name, [first])
    assert main(["compare", first, str(folder / "runs/z-only"), "--out", str(folder / "comparison")]) == 0
    return folder


@pytest.fixture(scope="module")
def names(folder: Path) -> Names:
    """The variables of the page's code blocks."""
    found: Names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plt.switch_backend("agg")
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(block, found)
    assert not plt.get_fignums(), "the page closes its figures"
    return found


@pytest.fixture(scope="module")
def store(folder: Path) -> LocalStore:
    return LocalStore(folder / "runs/tiny")


@pytest.fixture(scope="module")
def episodes(store: LocalStore) -> list[Episode]:
    return [e for record in read_records(store, "rollouts").values() for e in read_episodes(store, record)]


@pytest.fixture(scope="module")
def latents(store: LocalStore) -> list[LatentEpisode]:
    return [e for record in read_records(store, "latents").values() for e in read_latents(store, record)]


def test_tables_hold_the_episodes_of_the_run(names: Names, episodes: list[Episode], store: LocalStore) -> None:
    assert len(names["steps"]) == sum(map(len, episodes))
    returns = {episode.id: float(episode.rewards.sum()) for episode in episodes}
    assert names["returns"].to_dict() == pytest.approx(returns, abs=1e-5)
    np.testing.assert_array_equal(names["actions"], np.concatenate([episode.actions for episode in episodes]))
    tested = read_result(store).returns
    best = names["scores"][names["scores"].controller == "best"].sort_values("track")
    assert best.episode_return.tolist() == tested.tolist()
    ranked = sorted(episodes, key=lambda episode: (-len(episode), episode.id))[:5]
    assert names["longest"].episode_id.tolist() == [episode.id for episode in ranked]
    assert names["longest"].track.tolist() == [episode.track for episode in ranked]
    assert names["longest"].steps.tolist() == [len(episode) for episode in ranked]
    assert names["longest"].episode_return.tolist() == pytest.approx([returns[e.id] for e in ranked], abs=1e-5)
    assert names["hardest"].episode_return.tolist() == sorted(names["scores"].episode_return)[:3]


def test_frames_equal_those_of_the_environment(names: Names, episodes: list[Episode]) -> None:
    track = episodes[0].track
    assert len(names["frames"]) == len(episodes[0]) > 1
    assert [track_and_step(frame) for frame in names["frames"]] == [(track, step) for step in range(len(episodes[0]))]
    np.testing.assert_array_equal(names["frames"][1], frame_of(track, 1))


def test_latents_are_joined_with_their_rewards(
    names: Names, episodes: list[Episode], latents: list[LatentEpisode]
) -> None:
    mu = np.concatenate([episode.mu for episode in latents])
    ahead = [
        math.fsum(float(reward) for reward in episode.rewards[step : step + 10])
        for episode in episodes
        for step in range(len(episode))
    ]
    np.testing.assert_array_equal(names["mu"], mu)
    np.testing.assert_allclose(names["joined"].ahead, ahead, atol=1e-5)
    expected = [statistics.correlation(column, ahead) for column in mu.astype(float).T.tolist()]
    np.testing.assert_allclose(names["correlations"], expected, atol=1e-4)
    of_first = [statistics.fmean(episode.mu[:, 0].tolist()) for episode in latents]
    assert names["first_latent"]["mean"].tolist() == pytest.approx(of_first, abs=1e-6)
    spread = [statistics.pstdev(episode.mu[:, 0].tolist()) for episode in latents]
    assert names["first_latent"].sd.tolist() == pytest.approx(spread, abs=1e-6)


def test_latent_walk_changes_one_latent_and_is_decoded_by_v(names: Names, store: LocalStore) -> None:
    mu, widest = names["mu"].astype(float), names["widest"]
    assert widest == max(range(mu.shape[1]), key=lambda index: statistics.pstdev(mu[:, index].tolist()))
    away = names["walk"] - mu.mean(axis=0)
    np.testing.assert_allclose(np.delete(away, widest, axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(away[[0, -1], widest], [-3 * mu[:, widest].std(), 3 * mu[:, widest].std()], rtol=1e-3)
    trained = TrainedAgent.read(store)
    vae = weights.load_vae(trained.config.agent, trained.vae_weights).eval()
    with torch.inference_mode():
        decoded = vae.decode(torch.from_numpy(names["walk"].astype(np.float32))).numpy()
    pictures = decoded.transpose(0, 2, 3, 1) * 255
    np.testing.assert_allclose(names["pictures"], pictures, atol=1)
    assert len({picture.tobytes() for picture in names["pictures"]}) > 1


def states(run: Path, z: NDArray[np.float32], actions: NDArray[np.float32]) -> tuple[Any, Any]:
    """M's hidden states before each action and after the last, from a state of zeros; M itself. In torch."""
    store = LocalStore(run)
    agent, found = saved_config(store).agent, mdnrnn_weights(store, MDNRNN)
    mdnrnn = weights.load_mdnrnn(agent, ACTION_SIZE, found).eval()
    with torch.inference_mode():
        hidden, _ = mdnrnn.lstm(torch.cat([torch.from_numpy(z), torch.from_numpy(actions)], 1)[None])
    return torch.cat([torch.zeros_like(hidden[0, :1]), hidden[0]]), mdnrnn


def test_dream_begins_at_the_recorded_step(
    names: Names, folder: Path, episodes: list[Episode], latents: list[LatentEpisode]
) -> None:
    agent, dreams = names["agent"], names["dreams"]
    np.testing.assert_allclose(agent.z, latents[0].mu[9], atol=1e-3)
    hidden, _ = states(folder / "runs/tiny", latents[0].mu[:9], episodes[0].actions[:9])
    np.testing.assert_allclose(agent.h, hidden[9].numpy(), atol=1e-3)
    assert dreams.frames.shape == (4, 24, 64, 64, 3)
    assert dreams.rewards is None and dreams.end_probabilities is None
    np.testing.assert_array_equal(dreams.frames[0], agent.decode(dreams.z[0]))


def test_dream_steps_equal_those_of_m(names: Names, folder: Path) -> None:
    seen, taken = np.stack(names["seen"]), np.stack(names["taken"]).astype(np.float32)
    assert len(names["film"]) == len(seen) == len(taken) + 1 == 51
    size = config().vae.z_size
    hidden, mdnrnn = states(folder / "runs/dream", seen[:-1, :size], taken)
    np.testing.assert_allclose(seen[:, size:], hidden.numpy(), atol=1e-3)
    with torch.inference_mode():
        predicted = mdnrnn.predict(hidden[None, 1:]).reward
    np.testing.assert_allclose(names["rewards"], predicted.numpy().reshape(-1), atol=1e-3)


def test_curve_equals_that_of_the_evolution(names: Names, store: LocalStore) -> None:
    history = read_result(store).history
    assert names["history"].env_steps.tolist() == [row.env_steps for row in history]
    assert names["history"].fitness_mean.tolist() == pytest.approx([row.fitness_mean for row in history])
    expected = {row.env_steps: row.validation_mean for row in history if row.validation_mean is not None}
    validated = names["validated"].set_index("env_steps").validation_mean
    assert expected and validated.to_dict() == pytest.approx(expected)


def test_study_compares_the_runs_by_track(names: Names, folder: Path) -> None:
    tiny, z_only = (read_result(LocalStore(folder / "runs" / run)).returns for run in ("tiny", "z-only"))
    np.testing.assert_allclose(names["differences"], z_only - tiny)
    assert names["names"][1] == "controller.features=z"
    written = json.loads((folder / "comparison/comparison.json").read_text())
    assert written["arms"][1]["difference"]["mean"] == pytest.approx(names["differences"].mean())


def test_pictures_are_saved(names: Names, folder: Path) -> None:
    assert {path.name for path in folder.glob("*.png")} == PICTURES
    for picture in PICTURES:
        with Image.open(folder / picture) as image:
            assert image.width > 300 and len(set(image.convert("L").tobytes())) > 10, picture
