"""Episodes in M's dream: the worker that scores controllers without an environment (World Models, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.agent import AgentConfig
from pipeline.config.evolution import DreamConfig
from pipeline.envs.actions import Actions
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.dream import Dream
from pipeline.models.forward import make_dream_step, sample_z
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.rollouts.lockstep import run_in_lockstep

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Starts:
    """Latent distributions of recorded frames, from which dreams begin.

    Attributes:
        mu, logvar: Means and log variances, (N, Z) float32.
    """

    mu: Array
    logvar: Array

    def sample(self, stream: np.random.Generator) -> Array:
        """Sample the z of a frame that is drawn at random, (Z,) float32."""
        start = int(stream.integers(len(self.mu)))
        noise = stream.standard_normal(self.mu.shape[1:], np.float32)
        return sample_z(self.mu[start], self.logvar[start], noise)


class DreamWorker:
    """Runs dreams with controllers, many in lockstep; the plain class behind a dreaming actor.

    The controller acts on the z that was sampled, on h and on c; M then samples the next z. A dream begins at a z that
    is sampled from a recorded frame, with the state zero. Its noise depends on the seed of its job alone.

    Args:
        agent: Sections of the agent.
        dream: Section of dreams.
        actions: Actions of the environment that is dreamt.
        mdnrnn_weights: Weights of M as safetensors bytes.
        starts: Frames from which dreams begin.

    Attributes:
        num_lanes: Maximum number of active dreams.
    """

    def __init__(
        self, agent: AgentConfig, dream: DreamConfig, actions: Actions, mdnrnn_weights: bytes, starts: Starts
    ) -> None:
        self.num_lanes = dream.lanes
        self._actions, self._starts = actions, starts
        self._counts_rewards = dream.reward == "model"
        self._end_logit = math.log(dream.end_probability / (1 - dream.end_probability))
        step = make_dream_step(agent, mdnrnn_weights, dream.micro_batch, actions.size, dream.temperature)
        self._dream = Dream(step, dream.lanes)
        shape = ControllerShape.of_agent(agent, actions.size)
        self._features = shape.features
        self._controllers = ControllerBatch(shape, dream.lanes)
        self._returns, self._can_act = np.zeros(dream.lanes), np.zeros(dream.lanes, bool)
        self._steps, self._max_steps = np.zeros((2, dream.lanes), np.int64)

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
        """Run every job's dream, yielding (job id, result) as each ends."""
        return run_in_lockstep(self, jobs)

    def begin(self, slot: int, job: RolloutJob) -> None:
        """See ``Lanes.begin``."""
        stream = np.random.Generator(np.random.PCG64(job.noise_seed))
        self._dream.begin(slot, self._starts.sample(stream), stream)
        self._controllers.set_row(slot, job.parameters)
        self._returns[slot], self._steps[slot], self._max_steps[slot] = 0, 0, job.max_steps

    def move(self, source: int, target: int) -> None:
        """See ``Lanes.move``."""
        self._dream.move(source, target)
        self._controllers.move_row(source, target)
        for array in (self._returns, self._steps, self._max_steps):
            array[target] = array[source]

    def act(self, active: int) -> Iterator[tuple[int, RolloutResult]]:
        """See ``Lanes.act``. An action that is not finite ends its dream."""
        dream, rows = self._dream, slice(active)
        parts = {"z": dream.z[rows], "h": dream.h[rows], "c": dream.c[rows]}
        features = np.concatenate([parts[name] for name in self._features], axis=1)
        actions = self._actions.squash(self._controllers.outputs(features))
        np.isfinite(actions).all(axis=1, out=self._can_act[rows])
        sample = dream.step(actions)
        self._returns[rows] += sample.reward if self._counts_rewards and sample.reward is not None else 1
        self._steps[rows] += 1
        ended, can_act = np.full(active, False), self._can_act[rows]
        if sample.end_logit is not None:
            np.greater(sample.end_logit, self._end_logit, out=ended)
        for slot in np.flatnonzero(ended | (self._steps[rows] >= self._max_steps[rows]) | ~can_act)[::-1].tolist():
            steps, end = int(self._steps[slot]), bool(ended[slot])
            if can_act[slot]:
                yield slot, RolloutResult(float(self._returns[slot]), steps, terminated=end, truncated=not end)
            else:
                yield slot, RolloutResult(math.nan, steps - 1, terminated=False, truncated=False)
