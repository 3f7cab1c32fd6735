"""Stage 1: run episodes with a random policy, or with the last round's agent, and write them to shards."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.base import seeding
from pipeline.base.errors import EpisodeError
from pipeline.base.progress import Metrics, Update
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import (
    EVOLUTION,
    MDNRNN,
    ROLLOUTS,
    controllers_of,
    mdnrnn_weights,
    shard_name,
    vae_weights,
)
from pipeline.data.rounds import FIRST, Round, episodes_of, shard_episodes, shards_of, vae_folder
from pipeline.data.shards import episodes_to_bytes
from pipeline.data.streaming import StorageWait, commit_behind
from pipeline.envs.registry import make_environment, traits_of
from pipeline.execution.protocol import Executor
from pipeline.execution.stage_progress import watched
from pipeline.models.controller import ControllerShape
from pipeline.models.precision import resolved
from pipeline.rollouts.policies import ControllerPolicy, EvolvedAgent, Policy, make_policy
from pipeline.rollouts.recording import record_episode
from pipeline.stages.table import COLLECT
from pipeline.storage.manifest import (
    Record,
    commit,
    read_records,
    require_records,
)
from pipeline.storage.metrics import MetricsLog, MetricsRow
from pipeline.storage.store import Store

_SHARDS_AT_ONCE = 2  # per worker: one is recorded while the previous one is committed


@dataclass(frozen=True)
class ShardJob:
    """One shard to make.

    Attributes:
        id: Shard number.
    """

    id: int


class CollectWorker:
    """Records the episodes of shards and commits them; the plain class behind a collecting actor.

    Args:
        config: Config of the run.
        store: Store to commit shards to.
        at: Round that collects.
        collector: Agent that collects; None for the policy of the config.

    Attributes:
        waiting: Time spent waiting for storage, in seconds.
    """

    def __init__(
        self, config: RunConfig, store: Store, at: Round = FIRST, collector: EvolvedAgent | None = None
    ) -> None:
        self.waiting = StorageWait()
        self._config, self._store, self._round = config, store, at
        self._env = make_environment(config.env)
        self._collector = collector
        self._networks = None if collector is None else collector.networks(config.agent, self._env.actions.size)
        if config.collect.policy == "random-controller":
            importlib.import_module("torch")  # first, because a call's thread count only reaches imported libraries

    def run(self, jobs: Iterable[ShardJob]) -> Iterator[tuple[int, Record]]:
        """Record and commit the shards, yielding (job ID, record) for each."""
        return commit_behind(((job.id, self._collect(job.id)) for job in jobs), self.waiting)

    def _collect(self, shard: int) -> Callable[[], Record]:
        """Record a shard's episodes; returns a function that commits it."""
        config = self._config
        episodes = []
        for episode_id in shard_episodes(config, self._round, shard):
            policy = self._policy(episode_id)
            try:
                episode = record_episode(
                    self._env,
                    policy,
                    episode_id=episode_id,
                    track=seeding.track(config.seed, config.tracks.training, "collect/track", episode_id),
                    max_actions=config.env.actions_in(config.collect.episode_steps),
                    start=_start(config, episode_id),
                    job_id=shard,
                )
            except EpisodeError:
                with suppress(Exception):
                    self._env.close()
                self._env = make_environment(config.env)
                raise
            episodes.append(episode)
        returns = [float(episode.rewards.sum(dtype="float64")) for episode in episodes]
        return partial(
            commit,
            self._store,
            self._round.folder(ROLLOUTS),
            shard_name(shard),
            episodes_to_bytes(episodes),
            rows=sum(len(episode) for episode in episodes),
            episodes=[[episode.id, len(episode)] for episode in episodes],
            returns=returns,
        )

    def _policy(self, episode_id: int) -> Policy:
        config, env = self._config, self._env
        rng = seeding.generator(config.seed, "collect/policy", episode_id)
        if self._collector is None or self._networks is None:
            return make_policy(config.collect, config.agent, env, rng)
        return ControllerPolicy(
            env,
            self._networks,
            ControllerShape.of_agent(config.agent, env.actions.size),
            self._collector.candidate(episode_id, rng),
            rng,
            sample=config.controller.z == "sample",
            bursts=config.rounds.bursts,
            burst_actions=config.rounds.burst_actions,
        )


def _start(config: RunConfig, episode_id: int) -> np.random.Generator | None:
    """Random stream that draws an episode's start state; None for the track's own start."""
    rng = seeding.generator(config.seed, "collect/start", episode_id)
    return rng if rng.random() < config.collect.exploring_starts else None


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Collect the shards that are not committed yet.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    prefix = at.folder(ROLLOUTS)
    present = read_records(store, prefix)
    missing = [ShardJob(shard) for shard in shards_of(config, at) if shard_name(shard) not in present]
    repeat = config.env.action_repeat
    restored = steps = repeat * sum(record.rows for record in present.values())
    done = sum(len(record.info["episodes"]) for record in present.values())
    total = len(episodes_of(config, at))
    rows = _metrics_rows(present.values(), repeat)
    with watched(executor, COLLECT, "episode") as show, MetricsLog(store, prefix, rows) as metrics:
        show(Update(done, total, restored=done))
        before = done
        if missing:
            with executor.pool(
                CollectWorker, config, store, at, _collector(config, store, at), jobs_at_once=_SHARDS_AT_ONCE
            ) as pool:
                for _, record in pool.map(missing):
                    episodes = len(record.info["episodes"])
                    done += episodes
                    env_steps = repeat * record.rows
                    steps += env_steps
                    metrics.log(done, _metrics(steps, record))
                    new: Metrics = {"episodes": episodes, "env_steps": env_steps}
                    show(Update(done, total, {"steps": f"{steps:,}"}, restored=before, metrics=new))
    require_records(store, prefix, [shard_name(shard) for shard in shards_of(config, at)])
    return {
        "env_steps": steps,
        "env_steps_this_session": steps - restored,
        "steps_per_second": traits_of(config.env).steps_per_second,  # read by the report, which needs no environment
        **(resolved(config.rollouts, exact=config.execution.exact) if at.previous is not None else {}),
    }


def _collector(config: RunConfig, store: Store, at: Round) -> EvolvedAgent | None:
    """The agent of the round before; None in the first round."""
    before = at.previous
    if before is None:
        return None
    tensors = controllers_of(store, before.folder(EVOLUTION))
    return EvolvedAgent(
        vae_weights(store, vae_folder(config.rounds, before)),
        mdnrnn_weights(store, before.folder(MDNRNN)),
        tensors["mean"],
        tensors["spread"],
    )


def _metrics(env_steps: int, record: Record) -> dict[str, float]:
    return {"env_steps": env_steps, "shard_mean_return": fmean(record.info["returns"])}


def _metrics_rows(records: Iterable[Record], action_repeat: int) -> list[MetricsRow]:
    """Metrics rows of the shards that earlier sessions committed."""
    rows: list[MetricsRow] = []
    episodes = steps = 0
    for record in records:
        episodes += len(record.info["episodes"])
        steps += action_repeat * record.rows
        rows.append({"step": episodes, "time": time.time(), **_metrics(steps, record)})
    return rows
