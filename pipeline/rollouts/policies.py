"""Policies for data collection."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config.agent import AgentConfig
from pipeline.config.schema import CollectConfig
from pipeline.envs.environment import Environment

BROWNIAN_DT = 1 / 50  # per action, independent of the number of steps that an action is held for


class Policy(Protocol):
    """Chooses actions for one episode."""

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Choose an action, (A,) float32 within the environment's bounds, from a frame, (64, 64, 3) uint8."""


class WhitePolicy:
    """Independent uniform actions.

    Args:
        env: Environment whose actions are drawn.
        rng: Random stream of the episode.
    """

    def __init__(self, env: Environment, rng: np.random.Generator) -> None:
        self._actions, self._rng = env.actions, rng

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        return self._actions.random(self._rng)


class RepeatPolicy:
    """Uniform actions, each held for a uniform number of actions.

    The paper collects its TakeCover data so, with at most 10 repeats.

    Args:
        env: Environment whose actions are drawn.
        max_repeats: Largest number of actions that one is held for.
        rng: Random stream of the episode.
    """

    def __init__(self, env: Environment, max_repeats: int, rng: np.random.Generator) -> None:
        self._actions, self._max_repeats, self._rng = env.actions, max_repeats, rng
        self._left = 0

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        if self._left == 0:
            self._action = self._actions.random(self._rng)
            self._left = int(self._rng.integers(1, self._max_repeats, endpoint=True))
        self._left -= 1
        return self._action


class BrownianPolicy:
    """A random walk of the action from a uniform start, with steps of variance dt, clipped to the bounds.

    The PyTorch reproduction (Tallec, Blier & Kalainathan 2018) collects its data so, with dt = 1/50.

    Args:
        env: Environment whose action bounds apply.
        rng: Random stream of the episode.
    """

    def __init__(self, env: Environment, rng: np.random.Generator) -> None:
        self._low, self._high = env.actions.low, env.actions.high
        self._rng = rng
        self._action = rng.uniform(self._low, self._high)

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        action = self._action.astype(np.float32)
        step = np.sqrt(BROWNIAN_DT) * self._rng.standard_normal(self._action.shape)
        self._action = np.clip(self._action + step, self._low, self._high)
        return action


class RandomControllerPolicy:
    """Random V, M and C, drawn again for each episode, as the paper collects its data.

    As in the paper's code, every parameter is a Cauchy number times a scale that is uniform in [0, 0.01], drawn once
    per episode. The parameters of V and M are also divided by 10,000, as in the code's ``set_model_params``; without
    the division, most such networks overflow.

    Args:
        env: Environment that squashes the controller's output.
        config: Sections of the agent, for the sizes of V, M and C.
        rng: Random stream of the episode.
    """

    def __init__(self, env: Environment, config: AgentConfig, rng: np.random.Generator) -> None:
        # torch is imported here, not at the top: the other policies do not need it.
        import torch

        from pipeline.models.controller import ControllerBatch, ControllerShape
        from pipeline.models.forward import sample_z
        from pipeline.models.torch_forward import TorchEncoder, TorchRnnStep
        from pipeline.models.weights import new_mdnrnn, new_vae

        scale = 0.01 * rng.random()
        vae, mdnrnn = new_vae(config), new_mdnrnn(config, env.actions.size)
        with torch.no_grad():
            for parameter in [*vae.parameters(), *mdnrnn.parameters()]:
                values = (scale / 10_000 * rng.standard_cauchy(tuple(parameter.shape))).astype(np.float32)
                parameter.copy_(torch.from_numpy(values))
        shape = ControllerShape.of_agent(config, env.actions.size)
        self._actions, self._rng, self._features = env.actions, rng, shape.features
        self._encoder, self._rnn_step, self._sample_z = TorchEncoder(vae, 1), TorchRnnStep(mdnrnn, 1), sample_z
        self._controller = ControllerBatch(shape, 1)
        self._controller.set_row(0, (scale * rng.standard_cauchy(shape.num_parameters)).astype(np.float32))
        self._h = np.zeros((1, mdnrnn.hidden_size), np.float32)
        self._c = np.zeros_like(self._h)

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        mu, logvar = self._encoder(frame[None])
        z = self._sample_z(mu, logvar, self._rng.standard_normal(mu.shape, np.float32))
        parts = {"z": z, "h": self._h, "c": self._c}
        features = np.concatenate([parts[name] for name in self._features], axis=1)
        action = self._actions.squash(np.nan_to_num(self._controller.outputs(features)))
        self._h, self._c = self._rnn_step(z, action, self._h, self._c)
        first: NDArray[np.float32] = action[0]
        return first


def make_policy(collect: CollectConfig, agent: AgentConfig, env: Environment, rng: np.random.Generator) -> Policy:
    """Create the policy that ``collect.policy`` names, for one episode."""
    if collect.policy == "brownian":
        return BrownianPolicy(env, rng)
    if collect.policy == "white":
        return WhitePolicy(env, rng)
    if collect.policy == "repeat":
        return RepeatPolicy(env, collect.max_repeats, rng)
    return RandomControllerPolicy(env, agent, rng)
