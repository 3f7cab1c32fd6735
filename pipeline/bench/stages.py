"""``bench collect`` and ``bench dream``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch

from pipeline.base import seeding
from pipeline.base.threads import num_threads
from pipeline.bench.measure import BenchResult, Side, compare
from pipeline.bench.table import COLLECT, DREAM
from pipeline.config.schema import RunConfig
from pipeline.data.rounds import FIRST, shard_episodes, shards_of
from pipeline.envs.car_racing import CarRacing
from pipeline.envs.registry import traits_of
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.dream import Dream
from pipeline.models.torch_forward import TorchDreamStep
from pipeline.models.weights import new_mdnrnn, to_bytes
from pipeline.rollouts.dreaming import DreamWorker, Starts
from pipeline.rollouts.jobs import RolloutJob
from pipeline.rollouts.policies import make_policy
from pipeline.stages.collect import CollectWorker, ShardJob
from pipeline.storage.local import LocalStore

_CANDIDATES, _DREAMS_EACH, _DREAM_STEPS = 64, 16, 100
_TAKE_COVER: dict[str, Any] = {
    "vae": {"z_size": 64},
    "mdnrnn": {"done_weight": 1.0, "hidden_size": 512},
    "controller": {"features": "zch", "bias": False},
}


def bench_collect(seconds: float) -> BenchResult:
    """Compare the environment under the random policy, without storage, with the collecting worker."""
    config = RunConfig.model_validate(
        {
            "collect": {"policy": "brownian", "episodes": 100_000, "episode_steps": 250, "episodes_per_shard": 4},
            "mdnrnn": {"window": 250},
        }
    )
    env = CarRacing(config.env)

    def bare() -> Callable[[], int]:
        shards = count()

        def work() -> int:
            # Like the other side's episodes, but on different tracks: otherwise it would find them created.
            episodes = shard_episodes(config, FIRST, shards_of(config, FIRST)[-1 - next(shards)])
            steps = 0
            for episode in episodes:
                policy = make_policy(
                    config.collect, config.agent, env, seeding.generator(config.seed, "collect/policy", episode)
                )
                frame = env.reset(seeding.track(config.seed, config.tracks.training, "collect/track", episode))
                for _ in range(config.collect.episode_steps):
                    frame, _, terminated, truncated = env.step(policy.act(frame))
                    steps += 1
                    if terminated or truncated:
                        break
            return steps

        return work

    with tempfile.TemporaryDirectory() as folder, num_threads(1):
        worker = CollectWorker(config, LocalStore(folder))
        shards = count()
        return compare(
            COLLECT,
            "steps/s/core",
            Side("the environment alone", bare()),
            Side(
                "frames to Parquet",
                lambda: sum(record.rows for _, record in worker.run([ShardJob(next(shards))])),
            ),
            seconds=seconds,
            threads=1,
        )


def bench_dream(seconds: float) -> BenchResult:
    """Compare one dream at a time with a worker that scores a generation in dreams: M, sampling and controllers.

    A generation is the paper's, 64 candidates with 16 dreams each, with dreams of equal length.
    """
    small, paper = _dream_config({}), _dream_config(_TAKE_COVER)
    with num_threads(1):
        found = compare(
            DREAM,
            "steps/s/core",
            Side("one dream at a time", _one_dream(small)),
            Side("64 x 16 dreams, z 32, LSTM 256", _generation(small)),
            seconds=seconds,
            threads=1,
            others=[Side("64 x 16 dreams, z 64, LSTM 512 (TakeCover)", _generation(paper))],
        )
    generations = found.ours / (_CANDIDATES * _DREAMS_EACH * _DREAM_STEPS)
    note = f"{generations:.2f} generations/s of 64 x 16 dreams of {_DREAM_STEPS} steps on a core, z 32 and LSTM 256"
    return replace(found, notes=[*found.notes, note])


def _dream_config(keys: Mapping[str, Any]) -> RunConfig:
    return RunConfig.model_validate({"mdnrnn": {"done_weight": 1.0}, **keys})


def _one_dream(config: RunConfig) -> Callable[[], int]:
    """A plain loop over one dream."""
    action_size = traits_of(config.env).actions.size
    shape = ControllerShape.of_agent(config.agent, action_size)
    controller = ControllerBatch(shape, 1)
    controller.set_row(0, np.zeros(shape.num_parameters, np.float32))
    dream = Dream(TorchDreamStep(new_mdnrnn(config.agent, action_size), 1), 1)
    dream.reset(np.zeros((1, config.vae.z_size), np.float32), seeds=[0])

    def work() -> int:
        for _ in range(_DREAM_STEPS):
            dream.step(np.tanh(controller.outputs(np.concatenate([dream.z, dream.h], axis=1))))
        return _DREAM_STEPS

    return work


def _generation(config: RunConfig) -> Callable[[], int]:
    """A generation in a worker; M never ends a dream."""
    actions = traits_of(config.env).actions
    mdnrnn = new_mdnrnn(config.agent, actions.size)
    with torch.no_grad():
        mdnrnn.heads.bias[-1] = -50.0  # the logit of an end
    starts = Starts(*np.zeros((2, 1, config.vae.z_size), np.float32))
    worker = DreamWorker(config.agent, config.dream, actions, to_bytes(mdnrnn), starts)
    shape = ControllerShape.of_agent(config.agent, actions.size)
    candidates = seeding.generator(0, "bench").normal(0, 0.1, (_CANDIDATES, shape.num_parameters))
    jobs = [
        RolloutJob("train", 1, candidate, episode, 0, episode, parameters.astype(np.float32), _DREAM_STEPS)
        for candidate, parameters in enumerate(candidates)
        for episode in range(_DREAMS_EACH)
    ]
    return lambda: sum(result.steps for _, result in worker.run(jobs))
