"""From candidates to rollout jobs, and from their results to fitness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import seeding
from pipeline.config import RunConfig
from pipeline.errors import JobError
from pipeline.executor import Pool
from pipeline.rollouts.loop import RolloutJob, RolloutResult

JobId = tuple[str, int, int, int]


def training_jobs(config: RunConfig, generation: int, candidates: NDArray[np.float64]) -> list[RolloutJob]:
    """Every episode of a generation.

    With ``evolve.common_tracks`` the candidate is no part of the derivation: all of them meet the same tracks and the
    same noise (common random numbers), so that their fitness differs by what they do alone.
    """
    jobs = []
    for candidate, parameters in enumerate(candidates.astype(np.float32)):
        for episode in range(config.evolve.episodes_at(generation)):
            indices = (generation, episode) if config.evolve.common_tracks else (generation, episode, candidate)
            jobs.append(
                RolloutJob(
                    purpose="train",
                    generation=generation,
                    candidate=candidate,
                    episode=episode,
                    track=seeding.track(config.seed, config.tracks.training, "evolve/track", *indices),
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


def drive(
    pool: Pool, jobs: Sequence[RolloutJob], on_result: Callable[[RolloutJob, RolloutResult], None]
) -> dict[JobId, RolloutResult]:
    """All results by job id, each checked to be finite.

    Raises:
        JobError: a return is not finite, or a job has no result.
    """
    by_id = {job.id: job for job in jobs}
    results: dict[JobId, RolloutResult] = {}
    for key, result in pool.map(jobs):
        job = by_id[key]  # type: ignore[index]
        if not math.isfinite(result.episode_return):
            raise JobError(
                f"the return of {job} is {result.episode_return} after {result.steps} steps: the environment or the "
                "controller produced a number that is not finite"
            )
        results[job.id] = result
        on_result(job, result)
    if len(results) != len(jobs):
        raise JobError(f"{len(jobs) - len(results)} of {len(jobs)} jobs gave no result")
    return results


def candidate_fitness(
    jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult], population_size: int
) -> list[float]:
    """Mean return of each candidate, summed in the order of the jobs, whatever order the results came in."""
    returns: list[list[float]] = [[] for _ in range(population_size)]
    for job in jobs:
        returns[job.candidate].append(results[job.id].episode_return)
    return [math.fsum(values) / len(values) for values in returns]
