"""``bench collect`` and ``bench dream``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count

import numpy as np

from pipeline.base import seeding
from pipeline.base.threads import num_threads
from pipeline.bench.measure import Comparison, Side, compare
from pipeline.config.schema import RunConfig
from pipeline.envs.car_racing import CarRacing
from pipeline.envs.registry import traits_of
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.dream import Dream
from pipeline.models.weights import new_mdnrnn
from pipeline.rollouts.policies import make_policy
from pipeline.stages.collect import CollectWorker, ShardJob, num_shards, shard_episodes
from pipeline.storage.local import LocalStore

_DREAMS = 256
_DREAM_STEPS = 20


def bench_collect(seconds: float) -> Comparison:
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
            episodes = shard_episodes(config, num_shards(config) - 1 - next(shards))
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
            "collect",
            "steps/s/core",
            Side("the environment alone", bare()),
            Side(
                "frames to Parquet",
                lambda: sum(record.rows for _, record in worker.run([ShardJob(next(shards))])),
            ),
            seconds=seconds,
            threads=1,
        )


def bench_dream(seconds: float) -> Comparison:
    """Compare one dream at a time with many in lockstep: M, sampling and controllers."""
    config = RunConfig()
    action_size = traits_of(config.env).actions.size
    mdnrnn = new_mdnrnn(config.agent, action_size)
    shape = ControllerShape.of_agent(config.agent, action_size)
    rng = seeding.generator(0, "bench")

    def dreams(batch_size: int) -> Callable[[], int]:
        controllers = ControllerBatch(shape, batch_size)
        for row in range(batch_size):
            controllers.set_row(row, rng.normal(0, 0.1, shape.num_parameters).astype(np.float32))
        dream = Dream(mdnrnn)
        z = dream.reset(np.zeros((batch_size, config.vae.z_size), np.float32), seeds=range(batch_size))

        def work() -> int:
            nonlocal z
            for _ in range(_DREAM_STEPS):
                z = dream.step(np.tanh(controllers.outputs(np.concatenate([z, dream.h], axis=1)))).z
            return batch_size * _DREAM_STEPS

        return work

    with num_threads(1):
        return compare(
            "dream",
            "steps/s/core",
            Side("one dream at a time", dreams(1)),
            Side(f"{_DREAMS} dreams", dreams(_DREAMS)),
            seconds=seconds,
            threads=1,
        )
