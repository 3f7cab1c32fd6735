"""An agent in Python: it acts in Gymnasium's own game as the evaluation does, and dreams."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.agent import Agent
from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.observations import frame_of
from pipeline.envs.registry import make_environment, traits_of
from pipeline.models import weights
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.vae import frames_to_input, output_to_frames
from pipeline.storage.local import LocalStore
from tests.made_run import evaluated, put_trained, random_agent

STEPS = 40
PAGE = Path(__file__).parents[2] / "docs/agents.md"


def make_trained(z: str = "sample", **env: Any) -> TrainedAgent:
    """A small agent with random weights."""
    config = RunConfig.model_validate(
        {
            "env": {"view": "full", "max_episode_steps": STEPS, **env},
            "collect": {"episode_steps": STEPS},
            "vae": {"z_size": 8},
            "mdnrnn": {"hidden_size": 16, "window": 10, "reward_weight": 1.0, "done_weight": 1.0},
            "controller": {"features": "zch", "z": z},
            "rollouts": {"micro_batch": 3, "lanes": 6, "precision": "float32"},
        }
    )
    return random_agent(config)


@pytest.mark.parametrize("z", ["sample", "mu"])
@pytest.mark.parametrize("repeat", [1, 3])
def test_returns_in_gymnasiums_own_game_are_the_evaluations_to_the_bit(z: str, repeat: int) -> None:
    trained = make_trained(z, action_repeat=repeat)
    agent = Agent(trained, precision="float32")
    returns = []
    for episode in (0, 5):
        seed = trained.config.tracks.test.start + episode
        env = gymnasium.make("CarRacing-v3", max_episode_steps=STEPS)
        observation, _ = env.reset(seed=seed)
        agent.reset(seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            total, over = total + float(reward), terminated or truncated
        env.close()
        returns.append(total)
    if repeat > 1:  # the evaluation sums the rewards of one action first
        assert returns == pytest.approx(evaluated(trained, (0, 5)), abs=1e-9)
    else:
        assert returns == evaluated(trained, (0, 5))


def images(count: int, rng: np.random.Generator, size: int = 96) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def test_rows_of_a_batch_equal_single_agents_and_reset_alone() -> None:
    trained = make_trained()
    agent, rng = Agent(trained), np.random.default_rng(0)
    seen = [images(4, rng) for _ in range(5)]
    agent.reset(100)
    together = [agent.act(batch) for batch in seen[:3]]
    agent.reset([7], rows=[2])
    together += [agent.act(list(batch)) for batch in seen[3:]]
    assert together[0].shape == (4, 3) and agent.z.shape == (4, 8) and agent.h.shape == agent.c.shape == (4, 16)
    for row in range(4):
        alone = Agent(trained)
        alone.reset(100 + row)
        actions = [alone.act(batch[row]) for batch in seen[:3]]
        if row == 2:
            alone.reset(7)
        actions += [alone.act(batch[row]) for batch in seen[3:]]
        for ours, theirs in zip(together, actions, strict=True):
            np.testing.assert_array_equal(ours[row], theirs)
        np.testing.assert_array_equal(agent.h[row], alone.h)


def test_reset_without_a_seed_draws_other_noise_if_z_is_sampled() -> None:
    observation = images(1, np.random.default_rng(0))[0]
    for z, equal in (("sample", False), ("mu", True)):
        agent, found = Agent(make_trained(z)), []
        for _ in range(2):
            agent.reset()
            agent.act(observation)
            found.append(agent.z)
        assert np.array_equal(found[0], found[1]) == equal


def test_ms_state_follows_the_action_that_somebody_else_takes() -> None:
    """As M does when the controller itself takes that action."""
    agent, other, rng = Agent(make_trained("mu")), Agent(make_trained("mu")), np.random.default_rng(0)
    first, second = images(1, rng)[0], images(1, rng)[0]
    own = agent.act(first)
    np.testing.assert_array_equal(other.act(first, own), own)
    agent.act(second)
    third = np.array([0.3, 0.9, 0.1], np.float32)
    np.testing.assert_array_equal(other.act(second, third), third)
    np.testing.assert_array_equal(agent.h, other.h)
    agent.act(first)
    other.act(first)
    assert not np.array_equal(agent.h, other.h)


def test_the_reconstruction_is_vs_own() -> None:
    trained = make_trained("mu")
    agent = Agent(trained)
    agent.act(images(1, np.random.default_rng(0))[0])
    vae = weights.load_vae(trained.config.agent, trained.vae_weights).eval()
    with torch.inference_mode():
        mu, _ = vae.encode(frames_to_input(agent.frame[None]))
        expected = output_to_frames(vae.decode(mu))[0]
    assert agent.reconstruct().shape == (64, 64, 3)
    assert np.abs(agent.reconstruct().astype(int) - expected).max() <= 1
    np.testing.assert_allclose(agent.z, mu[0].numpy(), atol=1e-5)


def test_a_dream_begins_at_the_present_state_and_leaves_it() -> None:
    agent, rng = Agent(make_trained()), np.random.default_rng(0)
    agent.reset(1)
    for batch in (images(2, rng), images(2, rng)):
        taken = agent.act(batch)
    before = agent.z, agent.h, agent.c
    dreamt = agent.dream(6, 1.15, samples=3, seed=5, row=1)
    for array, was in zip((agent.z, agent.h, agent.c), before, strict=True):
        np.testing.assert_array_equal(array, was)
    assert dreamt.frames.shape == (3, 6, 64, 64, 3) and dreamt.frames.dtype == np.uint8
    assert dreamt.rewards is not None and dreamt.rewards.shape == (3, 6)
    assert (
        dreamt.end_probabilities is not None and ((dreamt.end_probabilities > 0) & (dreamt.end_probabilities < 1)).all()
    )
    for sample in range(3):
        np.testing.assert_allclose(dreamt.actions[sample, 0], taken[1], atol=1e-6)
    assert len({row.tobytes() for row in dreamt.z[:, 0]}) == 3, "dreams differ in their noise"
    again = agent.dream(6, 1.15, samples=3, seed=5, row=1)
    np.testing.assert_array_equal(again.z, dreamt.z)
    np.testing.assert_array_equal(agent.decode(dreamt.z[0]), dreamt.frames[0])


def test_a_dream_is_ms_own_distribution() -> None:
    """Beside torch: at a low temperature, the first z is the mean of the likeliest component."""
    trained = make_trained("mu")
    agent = Agent(trained)
    agent.reset(3)
    rng = np.random.default_rng(2)
    for _ in range(3):
        action = agent.act(images(1, rng)[0])
    mdnrnn: MdnRnn = weights.load_mdnrnn(trained.config.agent, 3, trained.mdnrnn_weights).eval()
    with torch.inference_mode():
        z, h, c = (torch.from_numpy(array)[None] for array in (agent.z, agent.h, agent.c))
        hidden, _ = mdnrnn.lstm(torch.cat([z, torch.from_numpy(action)[None]], 1)[:, None], (h[None], c[None]))
        prediction = mdnrnn.predict(hidden)
        mixture = prediction.mixture
        picked = mixture.logpi.argmax(-1, keepdim=True)
        mean = mixture.mu.gather(-1, picked)[0, 0, :, 0]
    dreamt = agent.dream(1, 1e-6, actions=action[None])
    np.testing.assert_allclose(dreamt.z[0, 0], mean.numpy(), atol=5e-3)
    assert prediction.reward is not None and dreamt.rewards is not None
    assert dreamt.rewards[0, 0] == pytest.approx(prediction.reward.item(), abs=1e-5)
    assert prediction.done_logit is not None and dreamt.end_probabilities is not None
    assert dreamt.end_probabilities[0, 0] == pytest.approx(torch.sigmoid(prediction.done_logit).item(), abs=1e-5)


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_trained(LocalStore(tmp_path / "runs/laptop"), make_trained())
    monkeypatch.chdir(tmp_path)
    first, batch, external = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    short = first
    for long, brief in (
        ('make("CarRacing-v3")', f'make("CarRacing-v3", max_episode_steps={STEPS})'),
        ("pretrained:carracing", "runs/laptop"),
    ):
        assert long in short
        short = short.replace(long, brief)
    exec(short, {})
    assert float(capsys.readouterr().out) == evaluated(make_trained(), [0])[0]
    exec(batch.replace("range(10)", "range(2)"), {})
    names: dict[str, Any] = {}
    exec(external, names)
    agent = names["FullGas"]()
    agent.reset(seed=1)
    assert agent.act(None) == [0.0, 1.0, 0.0]


def test_a_run_without_validation_has_the_mean_alone() -> None:
    trained = make_trained()
    mean = replace(trained, controllers={"mean": trained.controllers["mean"]})
    assert np.array_equal(mean.controller(), trained.controllers["mean"])
    with pytest.raises(ConfigError, match="controller 'best': this run has mean"):
        mean.controller("best")


def test_misuse_is_an_error_that_says_what_was_expected() -> None:
    agent = Agent(make_trained())
    with pytest.raises(ValueError, match="call act"):
        agent.dream(3)
    with pytest.raises(ValueError, match="call act"):
        _ = agent.z
    with pytest.raises(ValueError, match=r"\(50, 50, 3\): expected \(96, 96, 3\)"):
        agent.act(np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(ValueError, match="expected one image, uint8"):
        agent.act(np.zeros(7))
    rng = np.random.default_rng(0)
    agent.act(images(2, rng))
    with pytest.raises(ValueError, match="3 observations for 2 episodes"):
        agent.act(images(3, rng))
    with pytest.raises(ValueError, match="acts in 2 episodes"):
        agent.reset(rows=[2])
    agent.reset([1, 2])
    with pytest.raises(ValueError, match="2 seeds for 3 episodes"):
        agent.act(images(3, rng))
    with pytest.raises(ValueError, match="temperature 0"):
        agent.dream(3, 0)
    agent.reset()
    agent.act(images(2, rng))
    for row in (2, -1):
        with pytest.raises(ValueError, match=rf"row {row}: the agent acts in 2 episodes"):
            agent.begin_dream(row=row)
    with pytest.raises(ValueError, match="0 samples: expected at least one"):
        agent.begin_dream(samples=0)
    with pytest.raises(ValueError, match="0 steps: expected at least one"):
        agent.dream(0)
    with pytest.raises(ValueError, match=r"actions \(2, 3\): expected \(3, 3\)"):
        agent.dream(3, actions=np.zeros((2, 3), np.float32))


def test_actions_taken_that_do_not_fit_are_an_error_and_leave_the_state() -> None:
    agent, rng = Agent(make_trained()), np.random.default_rng(0)
    batch = images(3, rng)
    agent.reset(1)
    agent.act(batch)
    before = agent.h
    straight = np.array([0, 1, 0], np.float32)
    with pytest.raises(ValueError, match="2 actions taken in 3 episodes: expected one for each"):
        agent.act(batch, [straight, straight])
    with pytest.raises(ValueError, match=r"has 2 numbers: expected a value of Box"):
        agent.act(batch, [straight, straight[:2], straight])
    with pytest.raises(ValueError, match=r"nan.* is not finite"):
        agent.act(batch, [straight, straight * np.nan, straight])
    np.testing.assert_array_equal(agent.h, before)


def test_an_action_taken_is_held_like_the_controllers() -> None:
    agent, rng = Agent(make_trained(action_repeat=3)), np.random.default_rng(0)
    straight, left = np.array([0, 1, 0], np.float32), np.array([-1, 1, 0], np.float32)
    observation = images(1, rng)[0]
    for held in (straight, left):
        np.testing.assert_array_equal(agent.act(observation, held), held)
        with pytest.raises(ValueError, match=r"the last action is held for 2 more calls \(env.action_repeat 3\)"):
            agent.act(observation, held + 0.5)
        np.testing.assert_array_equal(agent.act(observation, held), held)
        np.testing.assert_array_equal(agent.act(observation), held)


def test_a_controller_that_is_no_number_is_an_error() -> None:
    trained = make_trained()
    trained.controllers["best"][0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Agent(trained).act(images(1, np.random.default_rng(0))[0])


@pytest.mark.parametrize(
    "env",
    [
        EnvConfig(id="CarRacing-v3", rendering="gymnasium", view="playfield"),
        EnvConfig(id="CarRacing-v3", rendering="gymnasium", view="full"),
        EnvConfig(id="TakeCover", max_episode_steps=2100),
        EnvConfig(id="ALE/Breakout-v5", crop=[30, 200, 0, 160]),
        EnvConfig(id="CartPole-v1"),
    ],
    ids=lambda env: f"{env.id}-{env.view}",
)
def test_frames_of_observations_are_the_environments(env: EnvConfig) -> None:
    ours = make_environment(env)
    action = traits_of(env).actions.random(np.random.default_rng(0))
    try:
        frame = ours.reset(5)
        for _ in range(3):
            frame = ours.step(action).frame
        game: Any = getattr(ours, "_game")  # noqa: B009 - what the adapter plays
        if env.id == "CarRacing-v3":
            observation = game._render("state_pixels")
        elif env.id == "TakeCover":
            observation = game.get_state().screen_buffer
        else:
            observation = getattr(ours, "_seen")  # noqa: B009
        np.testing.assert_array_equal(frame_of(observation, env), frame)
        codes = np.zeros((7, 7, 3), np.uint8)
        np.testing.assert_array_equal(frame_of({"screen": observation, "health": 3, "codes": codes}, env), frame)
    finally:
        ours.close()


def test_observations_without_an_image_are_refused() -> None:
    env, codes, image = EnvConfig(id="CartPole-v1"), np.zeros((7, 7, 3), np.uint8), np.zeros((40, 50, 3), np.uint8)
    for observation in (codes, {"codes": codes}, {"codes": codes, "mission": "go"}, {"left": image, "right": image}):
        with pytest.raises(ValueError, match=r"expected one image, uint8 .* pass env\.render\(\)"):
            frame_of(observation, env)
    two = {"left": image, "right": image + 1}
    np.testing.assert_array_equal(frame_of(two, EnvConfig(id="CartPole-v1", frame_key="right")), 1)
