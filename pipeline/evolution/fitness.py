"""Turn candidates into rollout jobs, and rollout results into fitness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.errors import JobError
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Pool
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult


def training_jobs(
    config: RunConfig,
    generation: int,
    candidates: NDArray[np.float64],
    replayed: Sequence[int] = (),
    *seed_indices: int,
    episodes: int | None = None,
) -> list[RolloutJob]:
    """Create the jobs of a generation: the last episodes on the ``replayed`` tracks, the others on new tracks.

    With ``evolve.common_tracks``, track and noise seeds do not depend on the candidate: all candidates get the same
    tracks and the same noise (common random numbers), so fitness differences come from the controllers alone.

    Args:
        config: Config of the run.
        generation: Number of the generation, the first being 1.
        candidates: Parameters of the candidates, (population_size, n) float64.
        replayed: Track seeds to run again.
        *seed_indices: Further indices of the seeds, which keep rounds apart.
        episodes: Number of episodes of each candidate; None for the value in the config, at this generation.
    """
    jobs = []
    episodes = config.evolve.episodes_at(generation) if episodes is None else episodes
    max_steps = config.evolve.episode_steps or config.env.max_episode_steps
    if config.evolve.dreams_at(generation):
        max_steps = config.dream.max_steps
    first_replayed = episodes - len(replayed)
    for candidate, parameters in enumerate(candidates.astype(np.float32)):
        for episode in range(episodes):
            indices = (*seed_indices, generation, episode)
            if not config.evolve.common_tracks:
                indices = (*indices, candidate)
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
                    max_steps=max_steps,
                    stall_steps=config.evolve.stall_steps,
                )
            )
    return jobs


def scored_jobs(
    seed: int,
    *,
    purpose: str,
    generation: int,
    candidate: int,
    parameters: NDArray[np.float64] | NDArray[np.float32],
    first_track: int,
    episodes: Iterable[int],
    max_steps: int,
) -> list[RolloutJob]:
    """Create full-length episodes of one controller on the tracks ``first_track + episode``: validation and test.

    Args:
        seed: Seed of the run.
        purpose: Purpose of the episodes: ``"validate"`` or ``"test"``.
        generation: Number of the generation.
        candidate: Number of the controller in the names of its jobs.
        parameters: Parameters of the controller, (n,) float64 or float32.
        first_track: Track seed of episode 0.
        episodes: Numbers of the episodes.
        max_steps: Maximum number of steps of an episode.
    """
    return [
        RolloutJob(
            purpose=purpose,
            generation=generation,
            candidate=candidate,
            episode=episode,
            track=first_track + episode,
            noise_seed=seeding.derive(seed, f"{purpose}/noise", episode),
            parameters=parameters.astype(np.float32),
            max_steps=max_steps,
        )
        for episode in episodes
    ]


def validation_dreams(
    seed: int, *, generation: int, parameters: NDArray[np.float64], count: int, max_steps: int
) -> list[RolloutJob]:
    """Create the dreams of a validation, with the same noise each time."""
    return [
        RolloutJob(
            purpose="validate-dream",
            generation=generation,
            candidate=0,
            episode=episode,
            track=0,
            noise_seed=seeding.derive(seed, "dream/validation", episode),
            parameters=parameters.astype(np.float32),
            max_steps=max_steps,
        )
        for episode in range(count)
    ]


def run_episodes(
    pool: Pool,
    jobs: Sequence[RolloutJob],
    on_result: Callable[[RolloutJob, RolloutResult], None],
    *,
    require_finite: bool,
) -> dict[JobId, RolloutResult]:
    """Run every job's episode. An episode with a non-finite return is run a second time, after all others.

    Args:
        pool: Workers to run the episodes on.
        jobs: Episodes to run.
        on_result: Callback for each job's accepted result, called once per job.
        require_finite: Whether a return that is non-finite the second time is an error; if False, it is a result.

    Returns:
        Results by job ID.

    Raises:
        JobError: A job has no result; or, with ``require_finite``, its return was non-finite twice.
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
        if require_finite and not math.isfinite(result.episode_return):
            raise JobError(
                f"the return of {job.name} is {result.episode_return} after {result.steps} steps, twice: the "
                "environment or the controller produces non-finite numbers, and no score is substituted",
                resume_after="fix the cause",
            )
        results[job.id] = result
        on_result(job, result)
    if len(results) != len(jobs):
        raise JobError(f"{len(jobs) - len(results)} of {len(jobs)} jobs gave no result")
    return results


def not_finite(jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult]) -> list[RolloutJob]:
    """Jobs whose return is not finite."""
    return [job for job in jobs if not math.isfinite(results[job.id].episode_return)]


def candidate_fitness(
    jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult], population_size: int
) -> list[float]:
    """Compute the mean return of each candidate, summed in job order regardless of the order of the results.

    A non-finite return counts as the worst fitness minus one, taken over the candidates whose returns are all finite;
    if there is no such candidate, it counts as the worst finite episode return minus one.

    Raises:
        JobError: No return is finite.
    """
    returns: list[list[float]] = [[] for _ in range(population_size)]
    for job in jobs:
        returns[job.candidate].append(results[job.id].episode_return)
    whole = [_mean(values) for values in returns if all(map(math.isfinite, values))]
    if len(whole) == population_size:
        return whole
    worst = min(whole) if whole else _min_finite(value for values in returns for value in values)
    return [_mean(_replace_non_finite(values, worst - 1)) for values in returns]


def validation_returns(jobs: Iterable[RolloutJob], results: Mapping[JobId, RolloutResult]) -> NDArray[np.float64]:
    """Returns in job order, (N,) float64; a non-finite return counts as the worst finite return minus one.

    Raises:
        JobError: No return is finite.
    """
    returns = [results[job.id].episode_return for job in jobs]
    return np.array(_replace_non_finite(returns, _min_finite(returns) - 1))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _min_finite(returns: Iterable[float]) -> float:
    finite = list(filter(math.isfinite, returns))
    if not finite:
        raise JobError(
            "no return is finite: the environment or the controllers produce non-finite numbers",
            resume_after="fix the cause",
        )
    return min(finite)


def _replace_non_finite(returns: Iterable[float], replacement: float) -> list[float]:
    return [value if math.isfinite(value) else replacement for value in returns]


class Steps:
    """Counter of the steps of episodes; call it with each result.

    Args:
        on_episode: Callback for the result of each episode.

    Attributes:
        count: Number of steps.
    """

    def __init__(self, on_episode: Callable[[RolloutResult], None]) -> None:
        self.count = 0
        self._on_episode = on_episode

    def __call__(self, job: RolloutJob, result: RolloutResult) -> None:
        """Count the steps of an episode."""
        self.count += result.steps
        self._on_episode(result)
