"""Lane-batched rollouts: several environments in lockstep with one forward pass for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import EpisodeError
from pipeline.base.progress import Metrics
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import EnvConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.environment import Environment
from pipeline.envs.registry import make_environment
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.forward import make_encoder, make_rnn_step, sample_z

Array = NDArray[np.float32]

JobId = tuple[str, int, int, int]


@dataclass(frozen=True)
class RolloutJob:
    """One episode to run.

    Attributes:
        purpose: Purpose of the episode: ``"train"``, ``"validate"`` or ``"test"``.
        generation, candidate, episode: Numbers that identify the episode.
        track: Track seed.
        noise_seed: Seed of the random stream that z is sampled with.
        parameters: Controller parameters, (n,) float32.
        max_steps: Environment steps after which the episode is cut.
        stall_steps: Environment steps without a positive reward after which the episode is cut; None for no limit.
    """

    purpose: str
    generation: int
    candidate: int
    episode: int
    track: int
    noise_seed: int
    parameters: Array = field(repr=False)
    max_steps: int
    stall_steps: int | None = None

    @property
    def id(self) -> JobId:
        """Job id: (purpose, generation, candidate, episode)."""
        return self.purpose, self.generation, self.candidate, self.episode

    @property
    def name(self) -> str:
        """Description for messages."""
        return (
            f"episode {self.episode} of candidate {self.candidate} in generation {self.generation} ({self.purpose}), "
            f"on track seed {self.track}"
        )


@dataclass(frozen=True)
class RolloutResult:
    """Outcome of an episode.

    Attributes:
        episode_return: Sum of rewards, float64.
        steps: Environment steps; if actions are repeated, the last action counts with all its steps.
        terminated, truncated: Whether the environment or its step limit ended the episode; both False if the pipeline
            cut it.
    """

    episode_return: float
    steps: int
    terminated: bool
    truncated: bool

    @property
    def metrics(self) -> Metrics:
        """See ``pipeline.base.progress``."""
        return {"episodes": 1, "env_steps": self.steps}


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

    Lanes occupy slots 0 .. n-1 of the batch arrays. The networks run on micro-batches of one fixed size, as many as
    cover the active slots, so a result does not depend on the lanes that share a batch. A lane that finishes takes the
    next job; if there is none, the last active lane moves into its slot.

    Args:
        env: Section of the environment.
        agent: Sections of the agent.
        vae_weights, mdnrnn_weights: Weights of V and M as safetensors bytes.
        watch: Callback with a lane's environment and frame before each of its steps.
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
        self._num_lanes = agent.rollouts.lanes
        self._watch = watch
        self._batch_size = agent.rollouts.micro_batch
        self._action_repeat = env.action_repeat
        probe = make_environment(env)
        self._idle = [probe]
        self._broken: Environment | None = None
        self._squash = probe.actions.squash

        self._encoder = make_encoder(agent, vae_weights, self._batch_size)
        self._rnn_step = make_rnn_step(agent, mdnrnn_weights, self._batch_size, probe.actions.size)
        shape = ControllerShape.of_agent(agent, probe.actions.size)
        self._features = shape.features
        self._sample = agent.controller.z == "sample"

        slots = -(-self._num_lanes // self._batch_size) * self._batch_size
        self._frames = np.zeros((slots, *FRAME_SHAPE), np.uint8)
        self._noise = np.zeros((slots, agent.vae.z_size), np.float32)
        self._h = np.zeros((slots, agent.mdnrnn.hidden_size), np.float32)
        self._c = np.zeros_like(self._h)
        self._actions = np.zeros((slots, probe.actions.size), np.float32)
        self._can_act = np.zeros(slots, bool)
        self._controllers = ControllerBatch(shape, slots)

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
        """Run every job's episode, yielding (job id, result) as each ends.

        Raises:
            EpisodeError: An environment raised. That environment is discarded; the worker can be called again.
        """
        waiting = iter(jobs)
        lanes: list[_Lane] = []
        try:
            while True:
                while len(lanes) < self._num_lanes and (job := next(waiting, None)) is not None:
                    lanes.append(self._begin(len(lanes), job, self._take_environment()))
                if not lanes:
                    return
                self._act(lanes)
                # From the last slot down, so that a lane that moves into a freed slot has already had its step.
                for slot in reversed(range(len(lanes))):
                    result = self._step(slot, lanes[slot])
                    if result is None:
                        continue
                    yield lanes[slot].job.id, result
                    job = next(waiting, None)
                    if job is not None:
                        lanes[slot] = self._begin(slot, job, lanes[slot].env)
                    else:
                        self._retire(slot, lanes)
        finally:
            self._idle += [lane.env for lane in lanes if lane.env is not self._broken]
            self._broken = None

    def _take_environment(self) -> Environment:
        return self._idle.pop() if self._idle else make_environment(self._env_config)

    def _begin(self, slot: int, job: RolloutJob, env: Environment) -> _Lane:
        try:
            self._frames[slot] = env.reset(job.track)
        except Exception as error:
            raise self._failed(env, job, "in reset", error) from error
        self._h[slot] = 0
        self._c[slot] = 0
        self._controllers.set_row(slot, job.parameters)
        return _Lane(env, job, np.random.Generator(np.random.PCG64(job.noise_seed)))

    def _retire(self, slot: int, lanes: list[_Lane]) -> None:
        last = len(lanes) - 1
        self._idle.append(lanes[slot].env)
        if slot != last:
            lanes[slot] = lanes[last]
            for array in (self._frames, self._h, self._c):
                array[slot] = array[last]
            self._controllers.move_row(last, slot)
        lanes.pop()

    def _act(self, lanes: Sequence[_Lane]) -> None:
        """Run one forward pass for all active slots: compute actions from frames and advance h and c.

        The order is the paper's: z from the frame, the action from (z, h), then M's step on (z, action).
        """
        if self._sample:
            for slot, lane in enumerate(lanes):
                lane.noise.standard_normal(dtype=np.float32, out=self._noise[slot])
        for start in range(0, len(lanes), self._batch_size):
            rows = slice(start, start + self._batch_size)
            z, logvar = self._encoder(self._frames[rows])
            if self._sample:
                z = sample_z(z, logvar, self._noise[rows])
            parts = {"z": z, "h": self._h[rows], "c": self._c[rows]}
            features = np.concatenate([parts[name] for name in self._features], axis=1)
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
