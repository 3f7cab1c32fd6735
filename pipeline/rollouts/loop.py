"""Lane-batched rollouts: several environments in lockstep with one forward pass for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import EpisodeError
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import EnvConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.environment import Environment
from pipeline.envs.registry import make_environment
from pipeline.models.controller import ControllerBatch, ControllerShape, join_features
from pipeline.models.forward import make_encoder, make_rnn_step, sample_z
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.rollouts.lockstep import run_in_lockstep


@dataclass
class _Lane:
    """One environment and its current episode."""

    env: Environment
    job: RolloutJob
    noise: np.random.Generator
    episode_return: float = 0.0
    steps: int = 0
    stalled: int = 0


class RolloutWorker:
    """Runs episodes with controllers; the plain class behind a rollout actor.

    Lanes occupy slots 0 .. n-1 of the batch arrays, see ``run_in_lockstep``. The networks run on micro-batches of one
    fixed size, as many as cover the active slots, so a result does not depend on the lanes that share a batch.

    Args:
        env: Section of the environment.
        agent: Sections of the agent.
        vae_weights, mdnrnn_weights: Weights of V and M as safetensors bytes.
        watch: Callback with a lane's environment and frame before each of its steps.

    Attributes:
        num_lanes: Maximum number of active lanes.
    """

    def __init__(
        self,
        env: EnvConfig,
        agent: AgentConfig,
        vae_weights: bytes,
        mdnrnn_weights: bytes,
        watch: Callable[[Environment, NDArray[np.uint8]], None] | None = None,
    ) -> None:
        self._env_config = env
        self.num_lanes = agent.rollouts.lanes
        self._watch = watch
        self._batch_size = agent.rollouts.micro_batch
        self._action_repeat = env.action_repeat
        probe = make_environment(env)
        self._idle = [probe]
        self._broken: Environment | None = None
        self._lanes: dict[int, _Lane] = {}
        self._squash = probe.actions.squash

        self._encoder = make_encoder(agent, vae_weights, self._batch_size)
        self._rnn_step = make_rnn_step(agent, mdnrnn_weights, self._batch_size, probe.actions.size)
        shape = ControllerShape.of_agent(agent, probe.actions.size)
        self._features = shape.features
        self._sample = agent.controller.z == "sample"

        slots = -(-self.num_lanes // self._batch_size) * self._batch_size
        self._frames = np.zeros((slots, *FRAME_SHAPE), np.uint8)
        self._noise = np.zeros((slots, agent.vae.z_size), np.float32)
        self._h = np.zeros((slots, agent.mdnrnn.hidden_size), np.float32)
        self._c = np.zeros_like(self._h)
        self._actions = np.zeros((slots, probe.actions.size), np.float32)
        self._can_act = np.zeros(slots, bool)
        self._controllers = ControllerBatch(shape, slots)

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
        """Run every job's episode, yielding (job ID, result) as each ends.

        Raises:
            EpisodeError: An environment raised. That environment is discarded; the worker can be called again.
        """
        try:
            yield from run_in_lockstep(self, jobs)
        finally:
            self._idle += [lane.env for lane in self._lanes.values() if lane.env is not self._broken]
            self._lanes.clear()
            self._broken = None

    def _take_environment(self) -> Environment:
        return self._idle.pop() if self._idle else make_environment(self._env_config)

    def begin(self, slot: int, job: RolloutJob) -> None:
        """See ``Lanes.begin``."""
        env = self._take_environment()
        try:
            self._frames[slot] = env.reset(job.track)
        except Exception as error:
            raise self._failed(env, job, "in reset", error) from error
        self._h[slot] = 0
        self._c[slot] = 0
        self._controllers.set_row(slot, job.parameters)
        self._lanes[slot] = _Lane(env, job, np.random.Generator(np.random.PCG64(job.noise_seed)))

    def move(self, source: int, target: int) -> None:
        """See ``Lanes.move``."""
        self._lanes[target] = self._lanes.pop(source)
        for array in (self._frames, self._h, self._c):
            array[target] = array[source]
        self._controllers.move_row(source, target)

    def act(self, active: int) -> Iterator[tuple[int, RolloutResult]]:
        """See ``Lanes.act``."""
        self._choose_actions(active)
        for slot in reversed(range(active)):
            result = self._step(slot, self._lanes[slot])
            if result is not None:
                self._idle.append(self._lanes.pop(slot).env)
                yield slot, result

    def _choose_actions(self, active: int) -> None:
        """Run one forward pass for all active slots: compute actions from frames and advance h and c.

        The order is the paper's: z from the frame, the action from (z, h), then M's step on (z, action).
        """
        if self._sample:
            for slot in range(active):
                self._lanes[slot].noise.standard_normal(dtype=np.float32, out=self._noise[slot])
        for start in range(0, active, self._batch_size):
            rows = slice(start, start + self._batch_size)
            z, logvar = self._encoder(self._frames[rows])
            if self._sample:
                z = sample_z(z, logvar, self._noise[rows])
            features = join_features(self._features, z, self._h[rows], self._c[rows])
            self._actions[rows] = self._squash(self._controllers.outputs(features, start))
            np.isfinite(self._actions[rows]).all(axis=1, out=self._can_act[rows])
            if self._features != "z":
                self._h[rows], self._c[rows] = self._rnn_step(z, self._actions[rows], self._h[rows], self._c[rows])

    def _step(self, slot: int, lane: _Lane) -> RolloutResult | None:
        """Step one lane's environment; returns the result if the episode ended. A non-finite action ends it."""
        if self._watch is not None:
            self._watch(lane.env, self._frames[slot])
        if not self._can_act[slot]:  # not the environment's fault; it is not stepped, as it might raise any error
            return RolloutResult(math.nan, lane.steps, terminated=False, truncated=False)
        try:
            self._frames[slot], reward, terminated, truncated = lane.env.step(self._actions[slot])
        except Exception as error:
            raise self._failed(lane.env, lane.job, f"in step {lane.steps + 1}", error) from error
        lane.steps += self._action_repeat
        lane.episode_return += reward
        lane.stalled = 0 if reward > 0 else lane.stalled + self._action_repeat
        job = lane.job
        stalled = job.stall_steps is not None and lane.stalled >= job.stall_steps
        if terminated or truncated or stalled or lane.steps >= job.max_steps:
            return RolloutResult(lane.episode_return, lane.steps, terminated, truncated)
        return None

    def _failed(self, env: Environment, job: RolloutJob, when: str, error: Exception) -> EpisodeError:
        self._broken = env
        with suppress(Exception):
            env.close()
        return EpisodeError.raised(job.name, when, error, job.id)
