"""From candidates to rollout jobs, and from their results to fitness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.errors import JobError
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor, Pool
from pipeline.rollouts.loop import RolloutJob, RolloutResult, RolloutWorker

JobId = tuple[str, int, int, int]


def training_jobs(
    config: RunConfig, generation: int, candidates: NDArray[np.float64], replayed: Sequence[int] = ()
) -> list[RolloutJob]:
    """Every episode of a generation, the last of them on the tracks ``replayed``, the others on new ones.

    With ``evolve.common_tracks`` the candidate is no part of the derivation: all of them meet the same tracks and the
    same noise (common random numbers), so that their fitness differs by what they do alone.
    """
    jobs = []
    first_replayed = config.evolve.episodes_at(generation) - len(replayed)
    for candidate, parameters in enumerate(candidates.astype(np.float32)):
        for episode in range(config.evolve.episodes_at(generation)):
            indices = (generation, episode) if config.evolve.common_tracks else (generation, episode, candidate)
            jobs.append(
                RolloutJob(
                    purpose="train",
                    generation=generation,
                    candidate=candidate,
                    episode=episode,
                    track=(
                        seeding.track(config.seed, config.tracks.training, "evolve/track", *indices)
                        if episode < first_replayed
                        else replayed[episode - first_replayed]
                    ),
                    noise_seed=seeding.derive(config.seed, "evolve/noise", *indices),
                    parameters=parameters,
                    max_steps=config.evolve.episode_steps or config.env.max_episode_steps,
                    stall_steps=config.evolve.stall_steps,
                )
            )
    return jobs


def scored_jobs(
    config: RunConfig,
    *,
    purpose: str,
    generation: int,
    candidate: int,
    parameters: NDArray[np.float64] | NDArray[np.float32],
    first_track: int,
    episodes: Iterable[int],
) -> list[RolloutJob]:
    """Whole episodes of one controller on the tracks ``first_track + episode``: validation and test."""
    return [
        RolloutJob(
            purpose=purpose,
            generation=generation,
            candidate=candidate,
            episode=episode,
            track=first_track + episode,
            noise_seed=seeding.derive(config.seed, f"{purpose}/noise", episode),
            parameters=parameters.astype(np.float32),
            max_steps=config.env.max_episode_steps,
        )
        for episode in episodes
    ]


def rollout_pool(
    executor: Executor, config: RunConfig, vae_weights: bytes, mdnrnn_weights: bytes
) -> AbstractContextManager[Pool]:
    """Workers that drive. A worker's networks run on whole micro-batches, so fewer episodes are not worth one more."""
    return executor.pool(
        RolloutWorker,
        config,
        vae_weights,
        mdnrnn_weights,
        jobs_at_once=config.rollouts.lanes,
        worthwhile=config.rollouts.micro_batch,
    )


def drive(
    pool: Pool, jobs: Sequence[RolloutJob], on_result: Callable[[RolloutJob, RolloutResult], None]
) -> dict[JobId, RolloutResult]:
    """All results by job id, each of them finite.

    Raises:
        JobError: a return is not finite, twice, or a job has no result.
    """

    def take(job: RolloutJob, result: RolloutResult) -> None:
        if not math.isfinite(result.episode_return):
            raise JobError(
                f"the return of {job.name} is {result.episode_return} after {result.steps} steps, twice: the "
                "environment or the controller produces a number that is not finite, and a score is not made up. What "
                "is committed is kept: once that is put right, the same command goes on."
            )
        on_result(job, result)

    return drive_all(pool, jobs, take)


def drive_all(
    pool: Pool, jobs: Sequence[RolloutJob], on_result: Callable[[RolloutJob, RolloutResult], None]
) -> dict[JobId, RolloutResult]:
    """All results by job id. An episode whose return is not finite is driven once more, after the rest.

    Raises:
        JobError: a job has no result.
    """
    results: dict[JobId, RolloutResult] = {}
    again: list[RolloutJob] = []
    by_id = {job.id: job for job in jobs}
    for key, result in pool.map(jobs):
        job = by_id[key]  # type: ignore[index]
        if math.isfinite(result.episode_return):
            results[job.id] = result
            on_result(job, result)
        else:
            again.append(job)
    for key, result in pool.map(again):
        job = by_id[key]  # type: ignore[index]
        results[job.id] = result
        on_result(job, result)
    if len(results) != len(jobs):
        raise JobError(f"{len(jobs) - len(results)} of {len(jobs)} jobs gave no result")
    return results


def not_finite(jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult]) -> list[RolloutJob]:
    """The jobs whose return is not finite."""
    return [job for job in jobs if not math.isfinite(results[job.id].episode_return)]


def candidate_fitness(
    jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult], population_size: int
) -> list[float]:
    """Mean return of each candidate, summed in the order of the jobs, whatever order the results came in.

    A return that is not finite counts as the worst finite fitness minus one: of the candidates all of whose returns
    are finite, or else, where there is no such candidate, of the episodes.

    Raises:
        JobError: no return at all is finite.
    """
    returns: list[list[float]] = [[] for _ in range(population_size)]
    for job in jobs:
        returns[job.candidate].append(results[job.id].episode_return)
    whole = [_mean(values) for values in returns if all(map(math.isfinite, values))]
    if len(whole) == population_size:
        return whole
    worst = min(whole) if whole else _worst(value for values in returns for value in values)
    return [_mean(_filled(values, worst - 1)) for values in returns]


def validation_returns(jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult]) -> NDArray[np.float64]:
    """Returns in the order of the jobs; one that is not finite counts as the worst that is, minus one.

    Raises:
        JobError: no return at all is finite.
    """
    returns = [results[job.id].episode_return for job in jobs]
    return np.array(_filled(returns, _worst(returns) - 1))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _worst(returns: Iterable[float]) -> float:
    finite = list(filter(math.isfinite, returns))
    if not finite:
        raise JobError(
            "not one return is finite: the environment or the controllers produce numbers that are not. What is "
            "committed is kept: once that is put right, the same command goes on."
        )
    return min(finite)


def _filled(returns: Iterable[float], stand_in: float) -> list[float]:
    return [value if math.isfinite(value) else stand_in for value in returns]
