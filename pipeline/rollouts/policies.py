"""Policies for data collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config.agent import AgentConfig
from pipeline.config.schema import CollectConfig
from pipeline.envs.environment import Environment
from pipeline.models.controller import ControllerBatch, ControllerShape, join_features
from pipeline.models.forward import Encoder, RnnStep, make_encoder, make_rnn_step, sample_z

_BROWNIAN_DT = 1 / 50  # per action, independent of the number of steps that an action is held for


class Policy(Protocol):
    """Chooses actions for one episode."""

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Choose an action, (A,) float32 within the environment's bounds, from a frame, (64, 64, 3) uint8."""


class Networks(NamedTuple):
    """V's encoder and M's step, for one episode at a time."""

    encoder: Encoder
    rnn_step: RnnStep


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

    The paper collects its TakeCover data this way, with at most 10 repeats.

    Args:
        env: Environment whose actions are drawn.
        max_repeats: Maximum number of actions for which a drawn action is held.
        rng: Random stream of the episode.
    """

    def __init__(self, env: Environment, max_repeats: int, rng: np.random.Generator) -> None:
        self._actions, self._max_repeats, self._rng = env.actions, max_repeats, rng
        self._left = 0

    @property
    def holding(self) -> bool:
        """Whether the next action is a held one."""
        return self._left > 0

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        if self._left == 0:
            self._action = self._actions.random(self._rng)
            self._left = int(self._rng.integers(1, self._max_repeats, endpoint=True))
        self._left -= 1
        return self._action


class BrownianPolicy:
    """A random walk of the action from a uniform start, with steps of variance dt, clipped to the bounds.

    The PyTorch reproduction (Tallec, Blier & Kalainathan 2018) collects its data this way, with dt = 1/50.

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
        step = np.sqrt(_BROWNIAN_DT) * self._rng.standard_normal(self._action.shape)
        self._action = np.clip(self._action + step, self._low, self._high)
        return action


class ControllerPolicy:
    """V, M and a controller, with bursts of random actions.

    Args:
        env: Environment that squashes the controller's output.
        networks: V's encoder and M's step.
        shape: Shape of the controller.
        parameters: Parameters of the controller, (n,) float32.
        rng: Random stream of the episode.
        sample: Whether the controller sees a sample of z, or its mean.
        bursts: Probability that an action begins a burst.
        burst_actions: Maximum number of actions for which a drawn action is held.
    """

    def __init__(
        self,
        env: Environment,
        networks: Networks,
        shape: ControllerShape,
        parameters: NDArray[np.float32],
        rng: np.random.Generator,
        *,
        sample: bool = True,
        bursts: float = 0.0,
        burst_actions: int = 1,
    ) -> None:
        self._actions, self._networks, self._rng = env.actions, networks, rng
        self._features, self._sample, self._bursts = shape.features, sample, bursts
        self._burst = RepeatPolicy(env, burst_actions, rng)
        self._controller = ControllerBatch(shape, 1)
        self._controller.set_row(0, parameters)
        self._h = np.zeros((1, networks.rnn_step.hidden_size), np.float32)
        self._c = np.zeros_like(self._h)

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        z, logvar = self._networks.encoder(frame[None])
        if self._sample:
            z = sample_z(z, logvar, self._rng.standard_normal(z.shape, np.float32))
        features = join_features(self._features, z, self._h, self._c)
        action = self._actions.squash(np.nan_to_num(self._controller.outputs(features)))
        if self._burst.holding or (self._bursts and self._rng.random() < self._bursts):
            action = self._burst.act(frame)[None]
        h, c = self._networks.rnn_step(z, action, self._h, self._c)
        self._h, self._c = h.copy(), c.copy()
        first: NDArray[np.float32] = action[0]
        return first


def _random_controller(env: Environment, config: AgentConfig, rng: np.random.Generator) -> ControllerPolicy:
    """Create random V, M and C, drawn again for each episode, as the paper collects its data.

    As in the paper's code, every parameter is a Cauchy number times a scale that is uniform in [0, 0.01], drawn once
    per episode. The parameters of V and M are also divided by 10,000, as in the code's ``set_model_params``; without
    the division, most such networks overflow.

    Args:
        env: Environment that squashes the controller's output.
        config: Sections of the agent, for the sizes of V, M and C.
        rng: Random stream of the episode.
    """
    # torch is imported here, not at the top: the other policies do not need it.
    import torch

    from pipeline.models.torch_forward import TorchEncoder, TorchRnnStep
    from pipeline.models.weights import new_mdnrnn, new_vae

    scale = 0.01 * rng.random()
    vae, mdnrnn = new_vae(config), new_mdnrnn(config, env.actions.size)
    with torch.no_grad():
        for parameter in [*vae.parameters(), *mdnrnn.parameters()]:
            values = (scale / 10_000 * rng.standard_cauchy(tuple(parameter.shape))).astype(np.float32)
            parameter.copy_(torch.from_numpy(values))
    shape = ControllerShape.of_agent(config, env.actions.size)
    parameters = (scale * rng.standard_cauchy(shape.num_parameters)).astype(np.float32)
    return ControllerPolicy(env, Networks(TorchEncoder(vae, 1), TorchRnnStep(mdnrnn, 1)), shape, parameters, rng)


@dataclass(frozen=True)
class EvolvedAgent:
    """The agent of a round, which collects the episodes of the next one.

    Attributes:
        vae_weights, mdnrnn_weights: Weights of V and M as safetensors bytes.
        mean: Mean of the search distribution, (n,) float32.
        spread: Standard deviations of the search distribution, (n,) float32.
    """

    vae_weights: bytes
    mdnrnn_weights: bytes
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def networks(self, config: AgentConfig, action_size: int) -> Networks:
        """Create the networks, for one episode at a time."""
        return Networks(
            make_encoder(config, self.vae_weights, 1), make_rnn_step(config, self.mdnrnn_weights, 1, action_size)
        )

    def candidate(self, episode: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Parameters for an episode, (n,) float32: the mean for every other one, else a candidate around it."""
        around = self.spread * rng.standard_normal(self.spread.shape, np.float32)
        return self.mean if episode % 2 == 0 else self.mean + around


def make_policy(collect: CollectConfig, agent: AgentConfig, env: Environment, rng: np.random.Generator) -> Policy:
    """Create the policy that ``collect.policy`` names, for one episode.

    Args:
        collect: Section ``collect`` of a config.
        agent: Sections of the agent.
        env: Environment of the episode.
        rng: Generator of the policy's randomness.
    """
    if collect.policy == "brownian":
        return BrownianPolicy(env, rng)
    if collect.policy == "white":
        return WhitePolicy(env, rng)
    if collect.policy == "repeat":
        return RepeatPolicy(env, collect.max_repeats, rng)
    return _random_controller(env, agent, rng)
