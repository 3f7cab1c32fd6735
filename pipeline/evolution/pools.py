"""The workers of an evolution: for episodes in the environment, or for dreams."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np

from pipeline.base import seeding
from pipeline.base.progress import Update
from pipeline.config.agent import AgentConfig
from pipeline.config.evolution import DreamConfig
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.data.artifacts import LATENTS, MDNRNN, mdnrnn_weights, vae_weights
from pipeline.data.quality import held_out_quality, predicted_ends
from pipeline.data.rounds import FIRST, Round, latents_rounds, vae_folder
from pipeline.data.shards import read_latents
from pipeline.envs.actions import Actions
from pipeline.envs.registry import traits_of
from pipeline.execution.protocol import Executor, Job, Pool, Resources
from pipeline.rollouts.dreaming import DreamWorker, Starts
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.rollouts.loop import RolloutWorker
from pipeline.storage.manifest import require_manifest, sealed_records
from pipeline.storage.store import Store
from pipeline.training.hardware import gpus_for

_STARTS_AN_EPISODE = 4  # with dream.start anywhere
_RESULTS_PER_UPDATE = 64  # updates are a task's sign of life


def open_rollout_pool(
    executor: Executor, env: EnvConfig, agent: AgentConfig, vae_weights: bytes, mdnrnn_weights: bytes
) -> AbstractContextManager[Pool]:
    """Open a pool of rollout workers.

    A worker's networks run on full micro-batches, so each additional worker needs at least one micro-batch of
    episodes.

    Args:
        executor: Executor of the pool.
        env: Section ``env`` of a config.
        agent: Sections of the agent.
        vae_weights: Weights of V as safetensors.
        mdnrnn_weights: Weights of M as safetensors.
    """
    return executor.pool(
        RolloutWorker,
        env,
        agent,
        vae_weights,
        mdnrnn_weights,
        jobs_at_once=agent.rollouts.lanes,
        jobs_per_worker=agent.rollouts.micro_batch,
    )


def open_dream_pool(
    executor: Executor, agent: AgentConfig, dream: DreamConfig, actions: Actions, mdnrnn_weights: bytes, starts: Starts
) -> AbstractContextManager[Pool]:
    """Open a pool of dreaming workers, with at least one micro-batch of dreams for each; or one task on a GPU.

    Args:
        executor: Executor of the pool.
        agent: Sections of the agent.
        dream: Section ``dream`` of a config.
        actions: Actions of the environment.
        mdnrnn_weights: Weights of M as safetensors.
        starts: Latents from which dreams begin.
    """
    if gpus := gpus_for(dream.device, executor):
        arguments = (agent, dream, actions, mdnrnn_weights, starts)
        return nullcontext(TaskPool(executor, run_dreams, arguments, Resources(gpus=gpus)))
    return executor.pool(
        DreamWorker,
        agent,
        dream,
        actions,
        mdnrnn_weights,
        starts,
        jobs_at_once=dream.lanes,
        jobs_per_worker=dream.micro_batch,
    )


def run_dreams(
    jobs: Sequence[RolloutJob],
    agent: AgentConfig,
    dream: DreamConfig,
    actions: Actions,
    mdnrnn_weights: bytes,
    starts: Starts,
) -> Generator[Update, None, list[tuple[JobId, RolloutResult]]]:
    """Run all dreams on a GPU; a task for an executor.

    Args:
        jobs: Dreams to run.
        agent: Sections of the agent.
        dream: Section ``dream`` of a config.
        actions: Actions of the environment.
        mdnrnn_weights: Weights of M as safetensors.
        starts: Latents from which dreams begin.

    Yields:
        Progress after every 64 dreams.

    Returns:
        Pairs (job ID, result).
    """
    worker = DreamWorker(agent, dream, actions, mdnrnn_weights, starts, on_gpu=True)
    found: list[tuple[JobId, RolloutResult]] = []
    for pair in worker.run(jobs):
        found.append(pair)
        if len(found) % _RESULTS_PER_UPDATE == 0:
            yield Update(len(found), len(jobs))
    return found


class TaskPool:
    """A pool whose jobs are run by one task at a time, see ``Pool``.

    Args:
        executor: Executor of the tasks.
        task: Task that takes the jobs and ``arguments``, and returns (job ID, result) for each.
        arguments: Further arguments of the task.
        resources: Resources of the task.
    """

    num_workers = 1
    retries = copies = 0

    def __init__(
        self, executor: Executor, task: Callable[..., Any], arguments: Sequence[Any], resources: Resources
    ) -> None:
        self._executor, self._task, self._arguments, self._resources = executor, task, arguments, resources

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Hashable, Any]]:
        """See ``Pool.map``."""
        if wanted := list(jobs):
            yield from self._executor.run(
                self._task, wanted, *self._arguments, resources=self._resources, on_update=lambda _: None
            )


class ExclusivePool(ExitStack):
    """A context that holds one pool at a time: two would wait for each other's CPUs.

    Attributes:
        num_workers: Maximum number of workers of a closed pool that were ready at the same time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_workers = 0
        self._retries = 0
        self._opened_by: Callable[[], AbstractContextManager[Pool]] | None = None
        self._pool: Pool | None = None

    def get(self, opening: Callable[[], AbstractContextManager[Pool]]) -> Pool:
        """Return the pool that ``opening`` opens; another that is open is closed first."""
        if self._pool is None or opening is not self._opened_by:
            self.close()
            self._opened_by, self._pool = opening, self.enter_context(opening())
            self.callback(self._count, self._pool)
        return self._pool

    @property
    def retries(self) -> int:
        """Number of times that a job was tried again, in all pools."""
        return self._retries + (self._pool.retries if self._pool is not None else 0)

    def _count(self, pool: Pool) -> None:
        """Keep the counts of a pool that is about to be closed."""
        self.num_workers = max(self.num_workers, pool.num_workers)
        self._retries += pool.retries
        self._pool = None


class EvolutionWorkers:
    """Workers of one evolution.

    Args:
        open_environment_pool: Function that opens the pool for episodes in the environment.
        open_dream_pool: Function that opens the pool for dreams.
        recall_note: Share of the ends that M predicts, in words.

    Attributes:
        pool: Context that holds the open pool.
        recall_note: Share of the ends that M predicts, in words: a return in dreams says nothing without it.
    """

    def __init__(
        self,
        open_environment_pool: Callable[[], AbstractContextManager[Pool]],
        open_dream_pool: Callable[[], AbstractContextManager[Pool]],
        recall_note: str = "",
    ) -> None:
        self.pool = ExclusivePool()
        self.recall_note = recall_note
        self._open_environment_pool, self._open_dream_pool = open_environment_pool, open_dream_pool

    @classmethod
    def of_run(cls, config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> EvolutionWorkers:
        """Workers for a round, with the weights and the recorded frames that its store holds.

        Args:
            config: Config of the run.
            store: Store of the run.
            executor: Executor of the pools.
            at: Round of the evolution.
        """
        v = vae_weights(store, vae_folder(config.rounds, at))
        m = mdnrnn_weights(store, at.folder(MDNRNN))
        starts = read_starts(config, store, at) if config.evolve.environment == "dream" else None

        def dreaming() -> AbstractContextManager[Pool]:
            assert starts is not None
            return open_dream_pool(executor, config.agent, config.dream, traits_of(config.env).actions, m, starts)

        info = require_manifest(store, at.folder(MDNRNN)).info
        return cls(
            lambda: open_rollout_pool(executor, config.env, config.agent, v, m),
            dreaming,
            predicted_ends(held_out_quality(info, config.dream.end_probability)),
        )

    def environment_pool(self) -> Pool:
        """Open the pool for episodes in the environment."""
        return self.pool.get(self._open_environment_pool)

    def dream_pool(self) -> Pool:
        """Open the pool for dreams."""
        return self.pool.get(self._open_dream_pool)


def read_starts(config: RunConfig, store: Store, at: Round = FIRST, start: str | None = None) -> Starts:
    """Read the starts of dreams: the latents of all first frames, or of frames drawn from all episodes.

    Args:
        config: Config of the run.
        store: Store of the run.
        at: Round whose episodes, and those of earlier rounds, are read.
        start: ``"first"`` or ``"anywhere"``; None for the value in the config.
    """
    start = start or config.dream.start
    mu, logvar = [], []
    records = sealed_records(store, (each.folder(LATENTS) for each in latents_rounds(config.rounds, at)))
    for name, record in sorted(records.items()):
        rng = seeding.generator(config.seed, f"dream/starts/{name}")
        for episode in read_latents(store, record):
            rows = slice(0, 1) if start == "first" else rng.integers(len(episode), size=_STARTS_AN_EPISODE)
            mu.append(episode.mu[rows])
            logvar.append(episode.logvar[rows])
    return Starts(np.concatenate(mu), np.concatenate(logvar))
