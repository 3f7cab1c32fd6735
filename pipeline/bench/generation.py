"""``bench generation``: one generation of the paper's size, on all cores but no more than 32, through Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np

from pipeline.base.seeding import generator
from pipeline.base.threads import num_threads
from pipeline.bench.agent import naive_loop
from pipeline.bench.fanout import bounded_workers
from pipeline.bench.measure import BenchResult
from pipeline.bench.table import GENERATION
from pipeline.bench.trained import TrainedRun
from pipeline.config.schema import RunConfig
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import run_episodes, training_jobs
from pipeline.evolution.pools import open_rollout_pool
from pipeline.execution.protocol import Executor
from pipeline.models.weights import load_into, new_mdnrnn, new_vae
from pipeline.rollouts.jobs import RolloutJob, RolloutResult

_POPULATION, _EPISODES, _EPISODE_STEPS = 64, 16, 1000
_PAPER_SECONDS, _PAPER_CORES = 2237.0, 64


def bench_generation(seconds: float, run: TrainedRun, executor: Callable[[RunConfig], Executor]) -> BenchResult:
    """Measure 64 candidates x 16 episodes from a run's last search distribution, on the pool of ``evolve``.

    The reference is the naive loop with the mean controller: its speed on one core without other load, times the
    number of workers. This overestimates it if cores share resources.

    Args:
        seconds: Seconds to measure the naive loop, half before and half after.
        run: Trained run.
        executor: Factory of executors.
    """
    config = run.config
    # The run's own networks and lanes, with the paper's whole episodes.
    env = config.env.model_copy(update={"max_episode_steps": _EPISODE_STEPS, "action_repeat": 1})
    search = run.search
    population = generator(0, "bench").multivariate_normal(
        search.mean, search.sigma**2 * search.covariance, _POPULATION, method="cholesky"
    )
    jobs = [
        replace(job, max_steps=_EPISODE_STEPS, stall_steps=None)
        for job in training_jobs(config, 1, population, episodes=_EPISODES)
    ]
    returns: list[float] = []
    steps = 0

    def take(_: RolloutJob, result: RolloutResult) -> None:
        nonlocal steps
        returns.append(result.episode_return)
        steps += result.steps

    naive = _naive_loop(config, run)
    with num_threads(1):
        naive_steps, naive_seconds = _for_seconds(naive, seconds / 2)
    on = executor(_on_ray(config))
    try:
        with open_rollout_pool(on, env, config.agent, run.vae_weights, run.mdnrnn_weights) as pool:
            # Wait until every worker is up, as in all generations after the first.
            warm_up = [replace(job, purpose="warm-up", max_steps=1) for job in jobs]
            run_episodes(pool, warm_up, lambda *_: None, require_finite=True)
            began = time.perf_counter()
            run_episodes(pool, jobs, take, require_finite=True)
            took = time.perf_counter() - began
            workers = pool.num_workers
    finally:
        on.close()
    with num_threads(1):
        more_steps, more_seconds = _for_seconds(naive, seconds / 2)
    naive_rate = (naive_steps + more_steps) / (naive_seconds + more_seconds)
    return BenchResult(
        GENERATION,
        "agent-steps/s",
        f"the naive loop, one core's rate x {workers}",
        f"{_POPULATION} x {_EPISODES} episodes on {workers} Ray workers: {took:.0f} s, {steps:,} steps, "
        f"mean return {fmean(returns):.0f}",
        naive_rate * workers,
        steps / took,
        1,
        more={
            "seconds": took,
            "steps": steps,
            "mean_return": fmean(returns),
            "workers": workers,
            "paper_seconds": _PAPER_SECONDS,
            "paper_cores": _PAPER_CORES,
        },
    )


def _on_ray(config: RunConfig) -> RunConfig:
    values = config.model_dump()
    values["execution"] |= {"executor": "ray", "workers": bounded_workers(config.execution.workers)}
    return RunConfig.model_validate(values)


def _naive_loop(config: RunConfig, run: TrainedRun) -> Callable[[], int]:
    vae, mdnrnn = new_vae(config.agent), new_mdnrnn(config.agent, traits_of(config.env).actions.size)
    load_into(vae, run.vae_weights, "the VAE's weights")
    load_into(mdnrnn, run.mdnrnn_weights, "the MDN-RNN's weights")
    return naive_loop(config.env.view, _EPISODE_STEPS, vae, mdnrnn, run.search.mean.astype(np.float32))


def _for_seconds(work: Callable[[], int], seconds: float) -> tuple[int, float]:
    began = time.perf_counter()
    units = 0
    while time.perf_counter() - began < seconds:
        units += work()
    return units, time.perf_counter() - began
