"""Episodes in M's dream: the worker that scores controllers without an environment (World Models, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.agent import AgentConfig
from pipeline.config.evolution import DreamConfig
from pipeline.envs.actions import Actions
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.forward import sample_z
from pipeline.models.weights import load_mdnrnn
from pipeline.rollouts.loop import JobId, RolloutJob, RolloutResult

Array = NDArray[np.float32]

_STEPS_PER_DRAW = 32  # steps per draw of random numbers: a call costs more than the numbers of one step


@dataclass(frozen=True)
class Starts:
    """Latent distributions of recorded frames, from which dreams begin.

    Attributes:
        mu, logvar: Means and log variances, (N, Z) float32.
    """

    mu: Array
    logvar: Array


@dataclass
class _Lane:
    """One dream."""

    job: RolloutJob
    stream: np.random.Generator
    drawn: int = _STEPS_PER_DRAW
    episode_return: float = 0.0
    steps: int = 0


class DreamWorker:
    """Runs dreams with controllers, many in lockstep; the plain class behind a dreaming actor.

    The controller acts on the z that was sampled, on h and on c; M then samples the next z. A dream begins at a z that
    is sampled from a recorded frame, with the state zero. Its noise depends on the seed of its job alone. As in
    ``RolloutWorker``, M runs on micro-batches of one fixed size, and a lane that ends takes the next job.

    Args:
        agent: Sections of the agent.
        dream: Section of dreams.
        actions: Actions of the environment that is dreamt.
        mdnrnn_weights: Weights of M as safetensors bytes.
        starts: Frames from which dreams begin.
    """

    def __init__(
        self, agent: AgentConfig, dream: DreamConfig, actions: Actions, mdnrnn_weights: bytes, starts: Starts
    ) -> None:
        self._dream, self._actions_of, self._starts = dream, actions, starts
        self._batch_size, self._num_lanes = dream.micro_batch, dream.lanes
        self._mdnrnn = load_mdnrnn(agent, actions.size, mdnrnn_weights).eval()
        self._end_logit = math.log(dream.end_probability / (1 - dream.end_probability))
        shape = ControllerShape.of_agent(agent, actions.size)
        self._features = shape.features

        slots = -(-dream.lanes // self._batch_size) * self._batch_size
        z_size, hidden_size = agent.vae.z_size, agent.mdnrnn.hidden_size
        self._z = np.zeros((slots, z_size), np.float32)
        self._h = np.zeros((slots, hidden_size), np.float32)
        self._c = np.zeros_like(self._h)
        self._actions = np.zeros((slots, actions.size), np.float32)
        self._rewards = np.ones(slots, np.float32)
        self._ended = np.zeros(slots, bool)
        choices = (slots, _STEPS_PER_DRAW) if self._mdnrnn.joint else (slots, _STEPS_PER_DRAW, z_size)
        self._uniform = np.zeros(choices, np.float32)
        self._noise = np.zeros((slots, _STEPS_PER_DRAW, z_size), np.float32)
        self._controllers = ControllerBatch(shape, slots)

    @torch.inference_mode()
    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
        """Run every job's dream, yielding (job id, result) as each ends."""
        waiting = iter(jobs)
        lanes: list[_Lane] = []
        while True:
            while len(lanes) < self._num_lanes and (job := next(waiting, None)) is not None:
                lanes.append(self._begin(len(lanes), job))
            if not lanes:
                return
            self._step(lanes)
            # From the last slot down, so that a lane that moves into a freed slot has already had its result.
            for slot in reversed(range(len(lanes))):
                result = self._result(slot, lanes[slot])
                if result is None:
                    continue
                yield lanes[slot].job.id, result
                job = next(waiting, None)
                if job is not None:
                    lanes[slot] = self._begin(slot, job)
                else:
                    self._retire(slot, lanes)

    def _begin(self, slot: int, job: RolloutJob) -> _Lane:
        stream = np.random.Generator(np.random.PCG64(job.noise_seed))
        start = int(stream.integers(len(self._starts.mu)))
        noise = stream.standard_normal(self._z.shape[1], np.float32)
        self._z[slot] = sample_z(self._starts.mu[start], self._starts.logvar[start], noise)
        self._h[slot] = 0
        self._c[slot] = 0
        self._controllers.set_row(slot, job.parameters)
        return _Lane(job, stream)

    def _retire(self, slot: int, lanes: list[_Lane]) -> None:
        last = len(lanes) - 1
        if slot != last:
            lanes[slot] = lanes[last]
            for array in (self._z, self._h, self._c, self._uniform, self._noise):
                array[slot] = array[last]
            self._controllers.move_row(last, slot)
        lanes.pop()

    def _step(self, lanes: Sequence[_Lane]) -> None:
        """Act once in every dream."""
        at = np.zeros(len(self._z), np.int64)
        for slot, lane in enumerate(lanes):
            if lane.drawn == _STEPS_PER_DRAW:
                lane.stream.random(dtype=np.float32, out=self._uniform[slot])
                lane.stream.standard_normal(dtype=np.float32, out=self._noise[slot])
                lane.drawn = 0
            at[slot] = lane.drawn
            lane.drawn += 1
        row = np.arange(len(self._z))
        for start in range(0, len(lanes), self._batch_size):
            rows = slice(start, start + self._batch_size)
            parts = {"z": self._z[rows], "h": self._h[rows], "c": self._c[rows]}
            features = np.concatenate([parts[name] for name in self._features], axis=1)
            self._actions[rows] = self._actions_of.squash(self._controllers.outputs(features, start))
            inputs = torch.from_numpy(np.concatenate([self._z[rows], self._actions[rows]], axis=1))
            state = torch.from_numpy(self._h[rows])[None], torch.from_numpy(self._c[rows])[None]
            hidden, (h, c) = self._mdnrnn.lstm(inputs[:, None], state)
            sample = self._mdnrnn.sample(
                hidden[:, 0],
                self._dream.temperature,
                torch.from_numpy(self._uniform[row[rows], at[rows]]),
                torch.from_numpy(self._noise[row[rows], at[rows]]),
            )
            self._z[rows], self._h[rows], self._c[rows] = sample.z.numpy(), h[0].numpy(), c[0].numpy()
            if self._dream.reward == "model" and sample.reward is not None:
                self._rewards[rows] = sample.reward.numpy()
            if sample.done_logit is not None:
                self._ended[rows] = sample.done_logit.numpy() > self._end_logit

    def _result(self, slot: int, lane: _Lane) -> RolloutResult | None:
        """Count a lane's step; returns the result if the dream ended. A non-finite action ends it."""
        if not np.isfinite(self._actions[slot]).all():
            return RolloutResult(math.nan, lane.steps, terminated=False, truncated=False)
        lane.steps += 1
        lane.episode_return += float(self._rewards[slot])
        ended = bool(self._ended[slot])
        if ended or lane.steps >= lane.job.max_steps:
            return RolloutResult(lane.episode_return, lane.steps, ended, not ended)
        return None
