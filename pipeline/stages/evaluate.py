"""Stage 6: evaluate the controllers on test tracks that are never used for selection."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.progress import Progress, Update
from pipeline.base.statistics import summarise
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import EnvConfig, EvaluateConfig, RunConfig
from pipeline.data.artifacts import (
    DRIVE,
    EVALUATION,
    EVOLUTION,
    GIF_END,
    MDNRNN,
    VIDEO_END,
    controllers_of,
    controllers_record,
    episodes_name,
    evaluation_tag,
    mdnrnn_weights,
    summary_name,
    vae_weights,
)
from pipeline.data.rounds import FIRST, Round, vae_folder
from pipeline.data.shards import DESCRIPTION_KEY
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import run_episodes, scored_jobs
from pipeline.evolution.pools import open_rollout_pool
from pipeline.execution.protocol import Executor, Pool, Resources
from pipeline.execution.stage_progress import watched
from pipeline.models.precision import resolved
from pipeline.rollouts.external_agents import ExternalWorker, environment_for, names_class, source_digest
from pipeline.rollouts.film import film
from pipeline.rollouts.jobs import RolloutJob, RolloutResult
from pipeline.stages.table import EVALUATE
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import FILES
from pipeline.storage.manifest import commit, read_records
from pipeline.storage.metrics import MetricsLog, MetricsRow
from pipeline.storage.run_dir import open_other
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0

AGENT = "agent"  # the controller of an external agent

_ROWS_DESCRIPTION = {
    "rows": "A row is one test episode. generation is the generation of the evolution that the controller is from. A "
    "file holds one evaluation; an evaluation with more episodes, or of a later generation, has its own file, which "
    "repeats the same episodes. evaluation identifies the evaluation: the last in string order is the newest."
}

# One test episode as a row of episodes.parquet.
EpisodeRow = dict[str, Any]


@dataclass(frozen=True)
class _TestedAgent:
    """Agent under test.

    Attributes:
        controllers: Parameters of its controllers by name, (n,) float32 each.
        generation: Generation of the evolution that they are from.
        seed: Seed of the noise with which z is sampled.
        digest: SHA-256 of the agent's weights or source; empty for the run's own agent, whose weights never change.
        open_pool: Function that opens a pool of workers for its episodes.
        film: Arguments of ``film`` before the job; None for an agent that is not filmed.
        info: Facts for the manifest.
    """

    controllers: Mapping[str, NDArray[np.float32]]
    generation: int
    seed: int
    digest: str
    open_pool: Callable[[], AbstractContextManager[Pool]]
    film: tuple[EnvConfig, AgentConfig, bytes, bytes] | None
    info: Mapping[str, Any]


def agent_identity(config: EvaluateConfig) -> dict[str, str]:
    """Identity of the agent under test beyond its name in ``evaluate.agent``; empty for the run's own.

    Raises:
        WorldModelsError: There is no such agent.
    """
    agent = config.agent
    if agent is None:
        return {}
    if names_class(agent):
        return {"evaluate.agent, SHA-256 of its source": source_digest(agent)}
    return {"evaluate.agent, SHA-256 of its weights": TrainedAgent.read(open_other(agent)).digest()}


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Evaluate the controllers; returns facts for the manifest.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    prefix = at.folder(EVALUATION)
    subject = _subject(config, store, executor, at)
    jobs = {
        name: jobs_of(config, subject.seed, subject.digest, parameters)
        for name, parameters in subject.controllers.items()
    }
    episode_rows, retries = run_test_episodes(store, prefix, executor, jobs, subject.open_pool)
    tag = evaluation_tag(subject.generation, config.evaluate.episodes)
    rows = [{"evaluation": tag, "generation": subject.generation, **row} for row in episode_rows]

    summary: dict[str, Any] = {
        name: summarise([row["episode_return"] for row in rows if row["controller"] == name], config.seed)
        for name in jobs
    }
    # Not the one that is better on the test tracks: nothing is selected on them.
    shown = min(jobs)  # "best" before "mean"
    names = {f"{DRIVE}{tag}{end}" for end in (GIF_END, VIDEO_END)} - read_records(store, prefix).keys()
    if names and subject.film is not None:
        job = film_job(config, jobs[shown], [row["episode_return"] for row in rows if row["controller"] == shown])
        _film(store, prefix, executor, names, shown, (*subject.film, job))
    commit(store, prefix, episodes_name(tag), _to_parquet(rows), rows=len(rows))
    commit(store, prefix, summary_name(tag), json.dumps(summary, indent=1).encode(), folder=FILES)
    env_steps = sum(row["steps"] for row in rows)
    return {"env_steps": env_steps, "controllers": summary, "retries": retries, **subject.info}


def _subject(config: RunConfig, store: Store, executor: Executor, at: Round) -> _TestedAgent:
    """The run's own agent, or the one of ``evaluate.agent``."""
    agent = config.evaluate.agent
    if agent is None:
        v = vae_weights(store, vae_folder(config.rounds, at))
        m = mdnrnn_weights(store, at.folder(MDNRNN))
        controllers, generation = chosen_controllers(config, store, at.folder(EVOLUTION))
        film_arguments = (config.test_env, config.agent, v, m)
        return _TestedAgent(
            controllers,
            generation,
            config.seed,
            "",
            partial(open_rollout_pool, executor, *film_arguments),
            film_arguments,
            resolved(config.rollouts, exact=config.execution.exact),
        )
    if names_class(agent):
        external = partial(executor.pool, ExternalWorker, agent, config.env, jobs_at_once=2)
        digest, none = source_digest(agent), np.zeros(0, np.float32)
        return _TestedAgent({AGENT: none}, 0, config.seed, digest, external, None, {"agent": agent, "source": digest})
    trained = TrainedAgent.read(open_other(agent))
    theirs, weights = trained.config, trained.digest()
    env = environment_for(theirs.env, config)
    film_arguments = (env, theirs.agent, trained.vae_weights, trained.mdnrnn_weights)
    return _TestedAgent(
        {AGENT: trained.controller()},
        0,
        theirs.seed,
        weights,
        partial(open_rollout_pool, executor, *film_arguments),
        film_arguments,
        {"agent": agent, "weights": weights, **resolved(theirs.rollouts, exact=config.execution.exact)},
    )


def _film(
    store: Store,
    prefix: str,
    executor: Executor,
    names: Collection[str],
    controller: str,
    arguments: tuple[EnvConfig, AgentConfig, bytes, bytes, RolloutJob],
) -> None:
    with Progress("film a drive", "drive") as show:
        made = executor.run(film, *arguments, resources=Resources(), on_update=show)
    for name in sorted(names):
        data = made.gif if name.endswith(GIF_END) else made.video
        commit(store, prefix, name, data, folder=FILES, controller=controller, **made.info)


def chosen_controllers(config: RunConfig, store: Store, evolution: str) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Load the newest controllers, by name, and their generation.

    If both are wanted and ``best`` equals the mean, only the mean is returned: equal parameters have equal scores. If
    no generation was validated, there is no best controller and the mean is returned instead.

    Args:
        config: Config of the run.
        store: Store of the run.
        evolution: Folder of the evolution.
    """
    tensors, info = controllers_of(store, evolution), controllers_record(store, evolution).info
    wanted = ["mean", "best"] if config.evaluate.controllers == "both" else [config.evaluate.controllers]
    if info["best_generation"] is None:
        if "best" in wanted:
            logger.info(
                "no generation was validated (evolve.validate_every is %d): evaluating the last CMA mean",
                config.evolve.validate_every,
            )
        wanted = ["mean"]
    elif len(wanted) == 2 and np.array_equal(tensors["mean"], tensors["best"]):
        wanted = ["mean"]
    return {name: tensors[name] for name in wanted}, int(info["generation"])


def jobs_of(config: RunConfig, seed: int, digest: str, parameters: NDArray[np.float32]) -> list[RolloutJob]:
    """Test episodes of a controller, one on each test track.

    Args:
        config: Config of the run.
        seed: Seed of the noise with which z is sampled.
        digest: See ``_TestedAgent``.
        parameters: Parameters of the controller, (n,) float32.
    """
    # The candidate number is derived from the parameters, so that a checkpoint distinguishes controllers and agents.
    candidate = seeding.derive(config.seed, f"evaluate/{digest}{parameters.tobytes().hex()}")
    return scored_jobs(
        seed,
        purpose="test",
        generation=0,
        candidate=candidate,
        parameters=parameters,
        first_track=config.tracks.test.start,
        episodes=range(config.evaluate.episodes),
        max_steps=config.env.max_episode_steps,
    )


def film_job(config: RunConfig, jobs: Sequence[RolloutJob], returns: Sequence[float]) -> RolloutJob:
    """Select the episode to film: the one with the median return (the upper of two), not the best.

    Args:
        config: Config of the run.
        jobs: Test episodes of a controller.
        returns: Their returns, in the same order.
    """
    job = jobs[int(np.argsort(returns, kind="stable")[len(returns) // 2])]
    steps = min(
        config.env.max_episode_steps, round(config.evaluate.film_seconds * traits_of(config.env).steps_per_second)
    )
    return RolloutJob(**{**vars(job), "max_steps": steps})


def run_test_episodes(
    store: Store,
    prefix: str,
    executor: Executor,
    jobs: Mapping[str, Sequence[RolloutJob]],
    open_pool: Callable[[], AbstractContextManager[Pool]],
) -> tuple[list[EpisodeRow], int]:
    """Run the jobs that the newest checkpoint does not have.

    Args:
        store: Store of the run, fenced by the session.
        prefix: Folder of the evaluation.
        executor: Executor of the stage's work.
        jobs: Test episodes by the name of their controller.
        open_pool: Function that opens a pool of workers for them.

    Returns:
        Rows of all jobs, in the order of controllers and tracks, and the number of retries.
    """
    checkpoints = Checkpoints(store, prefix)
    latest = checkpoints.latest()
    done: dict[tuple[int, int], RolloutResult] = {}
    if latest is not None:
        done = {(c, e): RolloutResult(*result) for c, e, result in json.loads(latest[1])}
    wanted = [job for some in jobs.values() for job in some]
    missing = [job for job in wanted if (job.candidate, job.episode) not in done]
    restored = len(wanted) - len(missing)
    names = {job.candidate: name for name, some in jobs.items() for job in some}
    returns: dict[str, list[float]] = {name: [] for name in jobs}
    rows: list[MetricsRow] = []

    def mean_return(job: RolloutJob, result: RolloutResult) -> dict[str, float]:
        """Mean return of the job's controller so far, by the name of its curve."""
        name = names[job.candidate]
        returns[name].append(result.episode_return)
        return {f"mean_return_{name}": fmean(returns[name])}

    for job in wanted:
        if (result := done.get((job.candidate, job.episode))) is not None:
            rows.append({"step": len(rows) + 1, "time": time.time(), **mean_return(job, result)})
    saved = time.monotonic()
    retries = 0

    def save() -> None:
        nonlocal saved
        table = [[c, e, [*vars(result).values()]] for (c, e), result in sorted(done.items())]
        checkpoints.save(len(done), json.dumps(table).encode())
        saved = time.monotonic()

    with watched(executor, EVALUATE, "episode") as show, MetricsLog(store, prefix, rows) as metrics:
        show(Update(restored, len(wanted), restored=restored))

        def take(job: RolloutJob, result: RolloutResult) -> None:
            done[job.candidate, job.episode] = result
            row = mean_return(job, result)
            count = sum(map(len, returns.values()))
            metrics.log(count, row)
            shown = {f"mean return of {name}": f"{fmean(some):.1f}" for name, some in returns.items() if some}
            show(Update(count, len(wanted), shown, restored=restored, metrics=result.metrics))
            if time.monotonic() - saved >= _SAVE_EVERY_S:
                save()

        if missing:
            with open_pool() as pool:
                run_episodes(pool, missing, take, require_finite=True)
                retries = pool.retries
            save()
    episode_rows = [
        {"controller": name, "track": job.track, **vars(done[job.candidate, job.episode])}
        for name, some in jobs.items()
        for job in some
    ]
    return episode_rows, retries


def _to_parquet(rows: Sequence[EpisodeRow]) -> bytes:
    buffer = io.BytesIO()
    metadata = {DESCRIPTION_KEY: json.dumps(_ROWS_DESCRIPTION)}
    table = pa.Table.from_pylist(list(rows)).replace_schema_metadata(metadata)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
