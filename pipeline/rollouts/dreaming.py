"""Episodes in M's dream: the worker that scores controllers without an environment (World Models, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.arrays import Array
from pipeline.config.agent import AgentConfig
from pipeline.config.evolution import DreamConfig
from pipeline.envs.actions import Actions
from pipeline.models.controller import ControllerBatch, ControllerShape, join_features
from pipeline.models.dream import Dream, DreamStep
from pipeline.models.forward import make_dream_step, sample_z
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.rollouts.lockstep import run_in_lockstep

# Dreams in a forward pass on a GPU, and in lockstep: fixed, so that no bit depends on the number of jobs.
GPU_BATCH, GPU_LANES = 256, 1024


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


class DreamGame:
    """Dreams as games that begin at recorded frames, pay rewards and end.

    Args:
        step: M's step.
        config: Section ``dream``: source of the rewards, condition of an end.
        starts: Frames from which dreams begin; M's state is zero.
        slots: Largest number of dreams.
    """

    def __init__(self, step: DreamStep, config: DreamConfig, starts: Starts, slots: int) -> None:
        self.dream = Dream(step, slots)
        self._starts = starts
        self._pays_model = config.reward == "model"
        self._end_logit = math.log(config.end_probability / (1 - config.end_probability))
        self._ones, self._never = np.ones(slots, np.float32), np.zeros(slots, bool)

    def begin(self, slot: int, stream: np.random.Generator) -> None:
        """Begin a dream; its start and its noise depend on its stream alone."""
        self.dream.begin(slot, self._starts.sample(stream), stream)

    def features(self, names: str, active: int) -> Array:
        """Inputs of controllers in the first ``active`` slots, (active, F) float32; names: letters z, c and h."""
        dream = self.dream
        return join_features(names, dream.z[:active], dream.h[:active], dream.c[:active])

    def step(self, actions: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Act once in each of the first N dreams.

        Args:
            actions: Actions, (N, A) float32.

        Returns:
            Rewards, (N,) float32, and whether M predicts that the episodes ended, (N,) bool.
        """
        sample, active = self.dream.step(actions), len(actions)
        rewards = sample.reward if self._pays_model and sample.reward is not None else self._ones[:active]
        if sample.end_logit is None:
            return rewards, self._never[:active]
        return rewards, np.greater(sample.end_logit, self._end_logit)


class DreamWorker:
    """Runs dreams with controllers, many in lockstep; the plain class behind a dreaming actor.

    The controller acts on the z that was sampled, on h and on c; M then samples the next z.

    Args:
        agent: Sections of the agent.
        dream: Section of dreams.
        actions: Actions of the environment that is dreamt.
        mdnrnn_weights: Weights of M as safetensors bytes.
        starts: Frames from which dreams begin.
        on_gpu: Whether M runs on a GPU, in batches of ``GPU_BATCH`` dreams.

    Attributes:
        num_lanes: Maximum number of active dreams.
    """

    def __init__(
        self,
        agent: AgentConfig,
        dream: DreamConfig,
        actions: Actions,
        mdnrnn_weights: bytes,
        starts: Starts,
        *,
        on_gpu: bool = False,
    ) -> None:
        self.num_lanes = lanes = GPU_LANES if on_gpu else dream.lanes
        self._actions = actions
        batch_size = GPU_BATCH if on_gpu else dream.micro_batch
        step = make_dream_step(agent, mdnrnn_weights, batch_size, actions.size, dream.temperature, on_gpu=on_gpu)
        self._game = DreamGame(step, dream, starts, lanes)
        shape = ControllerShape.of_agent(agent, actions.size)
        self._features = shape.features
        self._controllers = ControllerBatch(shape, lanes)
        self._returns, self._can_act = np.zeros(lanes), np.zeros(lanes, bool)
        self._steps, self._max_steps = np.zeros((2, lanes), np.int64)

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
        """Run every job's dream, yielding (job ID, result) as each ends."""
        return run_in_lockstep(self, jobs)

    def begin(self, slot: int, job: RolloutJob) -> None:
        """See ``Lanes.begin``."""
        self._game.begin(slot, np.random.Generator(np.random.PCG64(job.noise_seed)))
        self._controllers.set_row(slot, job.parameters)
        self._returns[slot], self._steps[slot], self._max_steps[slot] = 0, 0, job.max_steps

    def move(self, source: int, target: int) -> None:
        """See ``Lanes.move``."""
        self._game.dream.move(source, target)
        self._controllers.move_row(source, target)
        for array in (self._returns, self._steps, self._max_steps):
            array[target] = array[source]

    def act(self, active: int) -> Iterator[tuple[int, RolloutResult]]:
        """See ``Lanes.act``. An action that is not finite ends its dream."""
        rows = slice(active)
        actions = self._actions.squash(self._controllers.outputs(self._game.features(self._features, active)))
        np.isfinite(actions).all(axis=1, out=self._can_act[rows])
        can_act = self._can_act[rows]
        rewards, ended = self._game.step(actions)
        self._returns[rows] += rewards
        self._steps[rows] += 1
        over = ended | (self._steps[rows] >= self._max_steps[rows]) | ~can_act
        for slot in np.flatnonzero(over)[::-1].tolist():
            steps, end = int(self._steps[slot]), bool(ended[slot])
            if can_act[slot]:
                yield slot, RolloutResult(float(self._returns[slot]), steps, terminated=end, truncated=not end)
            else:
                yield slot, RolloutResult(math.nan, steps - 1, terminated=False, truncated=False)
