"""Stage 6: evaluate the controllers on test tracks that are never used for selection."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.progress import Progress, Update
from pipeline.base.statistics import summarise
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import (
    DRIVE,
    EVALUATION,
    EVOLUTION,
    MDNRNN,
    SUMMARY,
    TEST_EPISODES,
    controllers_of,
    controllers_record,
    mdnrnn_weights,
    vae_weights,
)
from pipeline.data.rounds import FIRST, Round, vae_folder
from pipeline.data.shards import DESCRIPTION_KEY
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import run_episodes, scored_jobs
from pipeline.evolution.pools import open_rollout_pool
from pipeline.execution.protocol import Executor, Resources
from pipeline.execution.watching import watched
from pipeline.models.precision import resolved
from pipeline.rollouts.film import film
from pipeline.rollouts.jobs import RolloutJob, RolloutResult
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.manifest import commit, read_records
from pipeline.storage.metrics import MetricsLog, MetricsRow
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0

_ROWS_DESCRIPTION = {
    "rows": "A row is one test episode. generation is the generation of the evolution that the controller is from. A "
    "file holds one evaluation; an evaluation with more episodes, or of a later generation, has its own file, which "
    "repeats the same episodes. evaluation identifies the evaluation: the last in string order is the newest."
}

# One test episode as a row of episodes.parquet.
EpisodeRow = dict[str, Any]


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Run the test episodes that are not done yet, film one drive, and commit the summary.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    prefix = at.folder(EVALUATION)
    v = vae_weights(store, vae_folder(config, at))
    m = mdnrnn_weights(store, at.folder(MDNRNN))
    controllers, generation = _controllers(config, store, at.folder(EVOLUTION))
    jobs = {name: _jobs(config, parameters) for name, parameters in controllers.items()}
    episode_rows, retries = _run_test_episodes(config, store, prefix, executor, jobs, v, m)
    tag = f"{generation:06d}-{config.evaluate.episodes:06d}"
    rows = [{"evaluation": tag, "generation": generation, **row} for row in episode_rows]

    summary: dict[str, Any] = {
        name: summarise([row["episode_return"] for row in rows if row["controller"] == name], config.seed)
        for name in controllers
    }
    # Not the one that is better on the test tracks: nothing is selected on them.
    shown = "best" if "best" in controllers else "mean"
    names = {f"{DRIVE}{tag}.{kind}" for kind in ("gif", "webm")} - read_records(store, prefix).keys()
    if names:
        job = _film_job(config, jobs[shown], [row["episode_return"] for row in rows if row["controller"] == shown])
        _film(config, store, prefix, executor, names, shown, job, v, m)
    commit(store, prefix, f"{TEST_EPISODES}{tag}.parquet", _to_parquet(rows), rows=len(rows))
    commit(store, prefix, f"{SUMMARY}{tag}.json", json.dumps(summary, indent=1).encode(), folder="files")
    env_steps = sum(row["steps"] for row in rows)
    return {
        "env_steps": env_steps,
        "controllers": summary,
        "retries": retries,
        **resolved(config.rollouts, exact=config.execution.exact),
    }


def _film(
    config: RunConfig,
    store: Store,
    prefix: str,
    executor: Executor,
    names: Collection[str],
    controller: str,
    job: RolloutJob,
    vae_weights: bytes,
    mdnrnn_weights: bytes,
) -> None:
    with Progress("film a drive", "drive") as show:
        made = executor.run(
            film,
            config.test_env,
            config.agent,
            vae_weights,
            mdnrnn_weights,
            job,
            resources=Resources(),
            on_update=show,
        )
    for name in sorted(names):
        data = made.gif if name.endswith(".gif") else made.video
        commit(store, prefix, name, data, folder="files", controller=controller, **made.info)


def _controllers(config: RunConfig, store: Store, evolution: str) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Load the newest controllers, by name, and their generation.

    If both are wanted and ``best`` equals the mean, only the mean is returned: equal parameters have equal scores. If
    no generation was validated, there is no best controller and the mean is returned instead.
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


def _jobs(config: RunConfig, parameters: NDArray[np.float32]) -> list[RolloutJob]:
    # The candidate number is derived from the parameters, so that a checkpoint distinguishes controllers.
    candidate = seeding.derive(config.seed, f"evaluate/{parameters.tobytes().hex()}")
    return scored_jobs(
        config.seed,
        purpose="test",
        generation=0,
        candidate=candidate,
        parameters=parameters,
        first_track=config.tracks.test.start,
        episodes=range(config.evaluate.episodes),
        max_steps=config.env.max_episode_steps,
    )


def _film_job(config: RunConfig, jobs: Sequence[RolloutJob], returns: Sequence[float]) -> RolloutJob:
    """Select the episode to film: the one with the median return (the upper of two), not the best."""
    job = jobs[int(np.argsort(returns, kind="stable")[len(returns) // 2])]
    steps = min(
        config.env.max_episode_steps, round(config.evaluate.film_seconds * traits_of(config.env).steps_per_second)
    )
    return RolloutJob(**{**vars(job), "max_steps": steps})


def _run_test_episodes(
    config: RunConfig,
    store: Store,
    prefix: str,
    executor: Executor,
    jobs: Mapping[str, Sequence[RolloutJob]],
    vae_weights: bytes,
    mdnrnn_weights: bytes,
) -> tuple[list[EpisodeRow], int]:
    """Run the jobs that the newest checkpoint does not have.

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

    with watched(executor, "evaluate", "episode") as show, MetricsLog(store, prefix, rows) as metrics:
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
            with open_rollout_pool(executor, config.test_env, config.agent, vae_weights, mdnrnn_weights) as pool:
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
