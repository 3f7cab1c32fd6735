"""Stage 5: evolve the controller with CMA-ES on the returns of episodes in the environment or in dreams."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pipeline.base import seeding
from pipeline.base.errors import SessionEnded
from pipeline.base.exactness import refuse_or_accept
from pipeline.base.failpoints import failpoint
from pipeline.base.progress import Metrics, Update
from pipeline.base.threads import num_threads
from pipeline.config.evolution import EvolveConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVOLUTION, controllers_name, controllers_of, history_name
from pipeline.data.rounds import FIRST, Round
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import (
    Steps,
    candidate_fitness,
    not_finite,
    run_episodes,
    scored_jobs,
    training_jobs,
    validation_dreams,
    validation_returns,
)
from pipeline.evolution.pools import EvolutionWorkers
from pipeline.evolution.replay import remember, replayed_tracks
from pipeline.evolution.search import Search
from pipeline.evolution.state import EvolutionState, Generation
from pipeline.execution.protocol import Executor
from pipeline.execution.stage_progress import watched
from pipeline.models.controller import ControllerShape
from pipeline.models.metadata import Description, to_metadata
from pipeline.models.precision import resolved
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.stages.description import describe_controller
from pipeline.stages.table import EVOLVE
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.manifest import commit
from pipeline.storage.metrics import MetricsLog
from pipeline.storage.store import Store
from pipeline.training.hardware import gpus_for

_MAX_LISTED = 10  # episodes listed in a warning

logger = logging.getLogger(__name__)


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Evolve from the newest checkpoint until a limit of the config is reached.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    prefix = at.folder(EVOLUTION)
    description = describe_controller(config)
    checkpoints = Checkpoints(store, prefix, keep=config.evolve.keep_checkpoints)
    state = _restore(checkpoints) or _new_state(config, store, at)
    before = state.env_steps
    retries = num_workers = 0
    with MetricsLog(store, prefix, [_metrics_row(row) for row in state.history]) as metrics:
        if _end_reason(config.evolve, state) is None:
            if config.evolve.environment == "dream":
                device = "cuda" if gpus_for(config.dream.device, executor) else "cpu"
                check_dream_device(state, device, exact=config.execution.exact)
            workers = EvolutionWorkers.of_run(config, store, executor, at)
            with num_threads(1), workers.pool:  # the bits of CMA-ES's linear algebra depend on the number of threads
                _evolve(config, state, workers, checkpoints, metrics, executor, at)
                retries = workers.pool.retries
            num_workers = workers.pool.num_workers
    _commit(store, prefix, state, description)
    return {
        "env_steps": state.env_steps,
        "env_steps_this_session": state.env_steps - before,
        "dream_steps": state.dream_steps,
        **({"dream_device": state.dream_device} if state.dream_device is not None else {}),
        "generations": state.generation,
        "ended_by": _end_reason(config.evolve, state),
        "best_generation": state.best_generation,
        "best_validation": state.best_validation,
        "workers": num_workers,
        "retries": retries,
        **resolved(config.rollouts, exact=config.execution.exact),
    }


def _new_state(config: RunConfig, store: Store, at: Round) -> EvolutionState:
    """A search from the zero vector, or in a later round from the last mean of the round before."""
    action_size = traits_of(config.env).actions.size
    start = np.zeros(ControllerShape.of_agent(config.agent, action_size).num_parameters)
    if at.previous is not None:
        start = controllers_of(store, at.previous.folder(EVOLUTION))["mean"].astype(np.float64)
    return EvolutionState(
        Search(
            start,
            sigma=config.evolve.sigma,
            population_size=config.evolve.population_size,
            seed=seeding.derive(config.seed, "evolve/cma", *at.seed_indices()),
        )
    )


def _restore(checkpoints: Checkpoints) -> EvolutionState | None:
    latest = checkpoints.latest()
    if latest is None:
        return None
    generation, data = latest
    logger.info("evolve: resuming after generation %d", generation)
    return EvolutionState.from_bytes(data)


def check_dream_device(state: EvolutionState, device: str, *, exact: bool) -> None:
    """Check that dreams run on the kind of device that they ran on before, and remember it.

    Raises:
        ConfigError: It is another one, and ``exact`` is set.
    """
    if state.dream_device not in (None, device):
        refuse_or_accept(
            f"evolve: the dreams so far ran on {state.dream_device}, and would continue on {device}",
            f"Resume on {state.dream_device}",
            exact=exact,
        )
    state.dream_device = device


def _end_reason(evolve: EvolveConfig, state: EvolutionState) -> str | None:
    """Name of the limit that ended the evolution; None while it is not complete."""
    target = evolve.target_return
    if target is not None and state.best_validation is not None and state.best_validation >= target:
        return "target_return"
    return "generations" if state.generation >= evolve.generations else None


def _evolve(
    config: RunConfig,
    state: EvolutionState,
    workers: EvolutionWorkers,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    executor: Executor,
    at: Round,
) -> None:
    session_began = time.monotonic()
    total = _episodes_until(config.evolve, config.evolve.generations)
    restored = done = _episodes_until(config.evolve, state.generation)
    shown: dict[str, str] = {}
    lengths: dict[int, int] = {}
    with watched(executor, EVOLVE, "episode") as show:

        def tick(result: RolloutResult) -> None:
            nonlocal done
            done += 1
            show(Update(done, total, shown, restored=restored, metrics=result.metrics))

        while _end_reason(config.evolve, state) is None:
            shown["generation"] = f"{state.generation + 1}/{config.evolve.generations}"
            show(Update(done, total, shown, restored=restored))
            retries = workers.pool.retries
            row = _next_generation(config, state, workers, tick, lengths, at)
            if workers.pool.retries > retries:
                logger.warning("generation %d: episodes retried: %d", row.generation, workers.pool.retries - retries)
            checkpoints.save(state.generation, state.to_bytes())
            metrics.log(row.generation, _metrics_row(row))
            shown["fitness"] = f"{row.fitness_mean:.1f} (best {row.fitness_max:.1f})"
            if config.evolve.dreams_at(row.generation):
                shown["fitness"] += f" in dreams ({workers.recall_note})"
            if row.validation_mean is not None:
                shown["validation"] = f"{row.validation_mean:.1f}"
            if row.dream_mean is not None:
                shown["in dreams"] = f"{row.dream_mean:.1f} ({workers.recall_note})"
            show(Update(done, total, shown, restored=restored, metrics=_metrics_of(row)))
            limit, ended = config.evolve.max_seconds, _end_reason(config.evolve, state) is not None
            if limit is not None and time.monotonic() - session_began >= limit and not ended:
                best = "none" if state.best_validation is None else f"{state.best_validation:.1f}"
                if config.evolve.select == "dream":
                    best += f", in dreams ({workers.recall_note})"
                raise SessionEnded(
                    f"evolve.max_seconds {limit:g} was reached after generation {state.generation} of "
                    f"{config.evolve.generations}, best validation so far {best}. "
                    "The run is not complete",
                    resume_after="",
                )


def _episodes_until(evolve: EvolveConfig, generation: int) -> int:
    """Total episodes of the generations up to this one, including validation."""
    validations = generation // evolve.validate_every
    each = evolve.validation_episodes + (evolve.validation_dreams if evolve.environment == "dream" else 0)
    return evolve.episodes_until(generation) * evolve.population_size + validations * each


def _next_generation(
    config: RunConfig,
    state: EvolutionState,
    workers: EvolutionWorkers,
    on_episode: Callable[[RolloutResult], None],
    lengths: dict[int, int],
    at: Round,
) -> Generation:
    """Run one generation: ask, run the episodes, tell, and validate if due. Appends a row to the history.

    Args:
        config: Config of the run.
        state: State of the evolution; updated in place.
        workers: Workers to run the episodes and dreams on.
        on_episode: Callback for the result of each episode.
        lengths: Steps of the most recent validation episode by track; updated in place.
        at: Round of the evolution.

    Returns:
        New row of the history.
    """
    began = time.monotonic()
    generation = state.generation + 1
    dreaming = config.evolve.dreams_at(generation)
    steps, dream_steps = Steps(on_episode), Steps(on_episode)
    sigma = config.evolve.sigma_at(generation)
    if sigma is not None:
        state.search.sigma = sigma
    candidates = state.search.ask()
    replayed = replayed_tracks(config.evolve, config.seed, generation, state.played)
    jobs = training_jobs(config, generation, candidates, replayed, *at.seed_indices())
    pool = workers.dream_pool() if dreaming else workers.environment_pool()
    results = run_episodes(pool, jobs, dream_steps if dreaming else steps, require_finite=False)
    non_finite = _report_non_finite(jobs, results)
    fitness = candidate_fitness(jobs, results, len(candidates))
    failpoint("generation-scored")
    state.search.tell(candidates, fitness)
    if not dreaming:
        state.played = remember(config.evolve, state.played, jobs, results)
    state.remember_mean(config.evolve.average_means)
    failpoint("search-updated")

    validation = dreams = None
    if generation % config.evolve.validate_every == 0:
        validation, dreams, count = _validate(config, state, generation, workers, steps, dream_steps, lengths)
        non_finite += count

    state.env_steps += steps.count
    state.dream_steps += dream_steps.count
    state.seconds += time.monotonic() - began
    state.history.append(
        Generation(
            generation=generation,
            env_steps=state.env_steps,
            seconds=state.seconds,
            fitness_min=min(fitness),
            fitness_mean=float(np.mean(fitness)),
            fitness_max=max(fitness),
            fitness_sd=float(np.std(fitness)),
            sigma=state.search.sigma,
            validation_mean=None if validation is None else float(validation.mean()),
            validation_sd=None if validation is None else _sd(validation),
            time=time.time(),
            non_finite=non_finite,
            dream_mean=None if dreams is None else float(dreams.mean()),
            dream_sd=None if dreams is None else _sd(dreams),
            dream_steps=state.dream_steps,
        )
    )
    return state.history[-1]


def _validate(
    config: RunConfig,
    state: EvolutionState,
    generation: int,
    workers: EvolutionWorkers,
    steps: Steps,
    dream_steps: Steps,
    lengths: dict[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, int]:
    """Validate the average of the last CMA means, and keep it if it is the best so far.

    Args:
        config: Config of the run.
        state: State of the evolution; its best controller is updated in place.
        generation: Number of the generation.
        workers: Workers to run the episodes and dreams on.
        steps: Counter of the steps in the environment.
        dream_steps: Counter of the steps in dreams.
        lengths: Steps of the most recent validation episode by track; updated in place.

    Returns:
        Returns in the environment, (N,) float64; returns in dreams, (M,) float64, or None if candidates are scored in
        the environment; number of non-finite returns.
    """
    controller = state.average_mean
    dreams, non_finite = None, 0
    if config.evolve.environment == "dream":
        dreamt = validation_dreams(
            config.seed,
            generation=generation,
            parameters=controller,
            count=config.evolve.validation_dreams,
            max_steps=config.dream.max_steps,
        )
        results = run_episodes(workers.dream_pool(), dreamt, dream_steps, require_finite=False)
        non_finite += _report_non_finite(dreamt, results)
        dreams = validation_returns(dreamt, results)
    scored = scored_jobs(
        config.seed,
        purpose="validate",
        generation=generation,
        candidate=0,
        parameters=controller,
        first_track=config.tracks.validation.start,
        episodes=range(config.evolve.validation_episodes),
        max_steps=config.env.max_episode_steps,
    )
    # Longest first, so that no long episode is left for the end; each track's last length is the estimate.
    by_length = sorted(scored, key=lambda job: -lengths.get(job.track, job.max_steps))
    results = run_episodes(workers.environment_pool(), by_length, steps, require_finite=False)
    lengths.update((job.track, results[job.id].steps) for job in scored)
    non_finite += _report_non_finite(scored, results)
    validation = validation_returns(scored, results)
    by = dreams if config.evolve.select == "dream" and dreams is not None else validation
    if state.best_validation is None or by.mean() > state.best_validation:
        state.best, state.best_generation = controller, generation
        state.best_validation = float(by.mean())
    return validation, dreams, non_finite


def _sd(returns: NDArray[np.float64]) -> float:
    return float(returns.std(ddof=min(1, len(returns) - 1)))


def _report_non_finite(jobs: Sequence[RolloutJob], results: Mapping[JobId, RolloutResult]) -> int:
    """Log a warning about episodes whose return was non-finite twice; returns their number."""
    found = not_finite(jobs, results)
    if found:
        listed = [f"{job.name}: {results[job.id].episode_return}" for job in found[:_MAX_LISTED]]
        more = [f"and {len(found) - _MAX_LISTED} more"] if len(found) > _MAX_LISTED else []
        logger.warning("non-finite return twice; scored as (worst finite score - 1):\n%s", "\n".join(listed + more))
    return len(found)


def _metrics_row(row: Generation) -> dict[str, Any]:
    values = asdict(row)
    return {"step": values.pop("generation"), **values}


def _metrics_of(row: Generation) -> Metrics:
    metrics: Metrics = {
        "generation": row.generation,
        "fitness_mean": row.fitness_mean,
        "fitness_max": row.fitness_max,
        "sigma": row.sigma,
    }
    return metrics if row.validation_mean is None else {**metrics, "validation_mean": row.validation_mean}


def _commit(store: Store, prefix: str, state: EvolutionState, description: Description) -> None:
    """Commit the history, the two controllers to evaluate, and the spread of the search."""
    mean = state.search.mean
    best = state.best if state.best is not None else mean
    commit(
        store,
        prefix,
        controllers_name(state.generation),
        save(
            {
                "mean": mean.astype(np.float32),
                "best": best.astype(np.float32),
                "spread": state.search.spread.astype(np.float32),
            },
            to_metadata(description),
        ),
        generation=state.generation,
        best_generation=state.best_generation,
        best_validation=state.best_validation,
    )
    history = json.dumps([asdict(row) for row in state.history], indent=1).encode()
    commit(store, prefix, history_name(state.generation), history, rows=state.generation)
