"""``bench agent`` and ``bench generation``: the whole loop, one worker alone and all of them through Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from statistics import fmean

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bench.measure import Comparison, Side, compare
from pipeline.config import RunConfig
from pipeline.envs.car_racing import CarRacing
from pipeline.envs.car_sprites import reduce_observation
from pipeline.errors import ConfigError
from pipeline.evolution.fitness import drive, training_jobs
from pipeline.evolution.state import EvolutionState
from pipeline.executor import Executor
from pipeline.models.controller import ControllerShape
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.openvino_forward import native_precisions
from pipeline.models.vae import Vae, frames_to_input
from pipeline.models.weights import load_into, new_mdnrnn, new_vae, to_bytes
from pipeline.presets import parse_yaml, validate
from pipeline.rollouts.loop import JOBS_PER_LANE, RolloutJob, RolloutResult, RolloutWorker
from pipeline.seeding import generator
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.manifest import read_verified, require_manifest
from pipeline.storage.store import Store
from pipeline.threads import num_threads

_EPISODE_STEPS = 250
_POPULATION, _EPISODES = 64, 16  # the paper's generation
_PAPER_SECONDS, _PAPER_CORES = 2237.0, 64


def bench_agent(seconds: float) -> Comparison:
    """The naive agent loop (batch 1, float32, encoder only) beside a rollout worker, at every precision there is."""
    candidates = 4 * RunConfig().rollouts.lanes
    config = RunConfig.model_validate(
        {
            "env": {"max_episode_steps": _EPISODE_STEPS},
            "collect": {"episode_steps": _EPISODE_STEPS},
            "mdnrnn": {"window": _EPISODE_STEPS},
            "evolve": {"episodes": 1},
            "rollouts": {"micro_batch": 8, "lanes": 16},
        }
    )
    vae, mdnrnn = new_vae(config), new_mdnrnn(config, CarRacing.action_size)
    rng = generator(0, "bench")
    vae.calibrate(frames_to_input(rng.integers(0, 256, (64, 64, 64, 3), np.uint8)))
    shape = ControllerShape.of_run(config, CarRacing.action_size)
    population = rng.normal(0, 0.1, (candidates, shape.num_parameters))

    def lanes(precision: str) -> Callable[[], int]:
        rollouts = config.rollouts.model_copy(update={"precision": precision})
        worker = RolloutWorker(config.model_copy(update={"rollouts": rollouts}), to_bytes(vae), to_bytes(mdnrnn))
        generations = count(1)
        return lambda: sum(
            result.steps for _, result in worker.run(training_jobs(config, next(generations), population))
        )

    *others, fastest = native_precisions()
    what = f"{config.rollouts.lanes} lanes, OpenVINO "
    with num_threads(1):
        return compare(
            "agent",
            "agent-steps/s/core",
            Side(
                "batch 1, torch float32, Gymnasium's rendering",
                _naive_loop(config.env.view, _EPISODE_STEPS, vae, mdnrnn, population[0].astype(np.float32)),
            ),
            Side(what + fastest, lanes(fastest)),
            seconds=seconds,
            threads=1,
            others=[Side(what + precision, lanes(precision)) for precision in others],
        )


def bench_generation(seconds: float, store: Store, executor: Callable[[RunConfig], Executor]) -> Comparison:
    """One generation of the paper's size around a run's controllers, through the pool that ``evolve`` uses.

    The reference is the naive loop at the same controller: its speed alone on a core, times as many cores as there are
    workers, which flatters it where cores share what they have.

    Args:
        seconds: that the naive loop is measured for, half before and half after.
        store: of a run that has evolved.
        executor: makes one.

    Raises:
        ConfigError: the run has no evolution yet.
    """
    latest = Checkpoints(store, "evolution").latest()
    if latest is None:
        raise ConfigError(
            f"{store.locate()} holds no evolution. bench generation drives the controllers of a run: "
            "`world-models run laptop` makes one, `make demo` a weak one; name it by --run-dir"
        )
    search = EvolutionState.from_bytes(latest[1]).search
    saved = validate(parse_yaml(store.read("config.yaml").decode(), "config.yaml"), store.locate("config.yaml"))
    config = _paper_size(saved)
    vae_weights = read_verified(store, require_manifest(store, "vae").records["vae.safetensors"])
    mdnrnn_weights = read_verified(store, require_manifest(store, "mdnrnn").records["mdnrnn.safetensors"])
    vae, mdnrnn = new_vae(config), new_mdnrnn(config, CarRacing.action_size)
    load_into(vae, vae_weights, "the VAE's weights")
    load_into(mdnrnn, mdnrnn_weights, "the MDN-RNN's weights")
    population = generator(0, "bench").multivariate_normal(
        search.mean, search.sigma**2 * search.covariance, _POPULATION, method="cholesky"
    )
    jobs = training_jobs(config, 1, population)
    returns: list[float] = []
    steps = 0

    def take(_: RolloutJob, result: RolloutResult) -> None:
        nonlocal steps
        returns.append(result.episode_return)
        steps += result.steps

    with num_threads(1):
        naive = _naive_loop(config.env.view, config.env.max_episode_steps, vae, mdnrnn, search.mean.astype(np.float32))
        naive_steps, naive_seconds = _for_seconds(naive, seconds / 2)
    on = executor(config)
    try:
        with on.pool(
            RolloutWorker, config, vae_weights, mdnrnn_weights, jobs_per_call=JOBS_PER_LANE * config.rollouts.lanes
        ) as pool:
            # Until every worker is up, as they are from the second generation on.
            drive(pool, [replace(job, max_steps=1) for job in jobs], lambda *_: None)
            began = time.perf_counter()
            drive(pool, jobs, take)
            took = time.perf_counter() - began
        workers = on.max_workers
    finally:
        on.close()
    with num_threads(1):
        more_steps, more_seconds = _for_seconds(naive, seconds / 2)
    naive_rate = (naive_steps + more_steps) / (naive_seconds + more_seconds)
    return Comparison(
        "generation",
        "agent-steps/s",
        f"the naive loop on {workers} cores",
        f"{_POPULATION} x {_EPISODES} episodes, {workers} workers on Ray, {took:.0f} s for {steps:,} steps "
        f"at a mean return of {fmean(returns):.0f}",
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


def _paper_size(config: RunConfig) -> RunConfig:
    """The run's own networks and lanes, the paper's population and whole episodes."""
    evolve = config.evolve.model_copy(
        update={
            "population_size": _POPULATION,
            "episodes": _EPISODES,
            "episodes_from": [],
            "episode_steps": None,
            "stall_steps": None,
        }
    )
    env = config.env.model_copy(update={"max_episode_steps": 1000})
    return config.model_copy(update={"evolve": evolve, "env": env})


def _for_seconds(work: Callable[[], int], seconds: float) -> tuple[int, float]:
    began = time.perf_counter()
    units = 0
    while time.perf_counter() - began < seconds:
        units += work()
    return units, time.perf_counter() - began


def _naive_loop(
    view: str, max_steps: int, vae: Vae, mdnrnn: MdnRnn, parameters: NDArray[np.float32]
) -> Callable[[], int]:
    """What one would write first: one environment, one frame at a time; pieces of 50 steps."""
    env = gymnasium.make("CarRacing-v3", max_episode_steps=max_steps)
    weights = torch.from_numpy(parameters[:-3].reshape(3, -1))
    bias = torch.from_numpy(parameters[-3:])

    @torch.inference_mode()
    def steps() -> Iterator[None]:
        for track in count():
            observation, _ = env.reset(seed=track)
            state = mdnrnn.initial_state(1)
            ended = False
            while not ended:
                frame = frames_to_input(reduce_observation(observation, view)[None])
                mu, logvar = vae.encode(frame)
                z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
                action = torch.tanh(weights @ torch.cat([z[0], state[0][0, 0]]) + bias)
                action[1] = (action[1] + 1) / 2
                action[2] = action[2].clamp(min=0)
                _, state = mdnrnn.lstm(torch.cat([z[0], action])[None, None], state)
                observation, _, terminated, truncated, _ = env.step(action.numpy())
                ended = terminated or truncated
                yield

    stream = steps()
    return lambda: sum(1 for _ in islice(stream, 50))
