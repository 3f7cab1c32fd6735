"""Speed of a rollout worker with all its lanes active and with one, as input of ``world-models plan``."""

from __future__ import annotations

import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np

from pipeline.base.seeding import generator
from pipeline.base.threads import num_threads
from pipeline.bench.agent import untrained_networks
from pipeline.config.schema import RunConfig
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import training_jobs
from pipeline.models.controller import ControllerShape
from pipeline.models.weights import to_bytes
from pipeline.rollouts.loop import RolloutWorker

_WARM_UP_STEPS = 20


def measure_rates(config: RunConfig, seconds: float, workers: int) -> tuple[float, float]:
    """Measure agent-steps/s of a worker with all its lanes active, and with one, as the mean over simultaneous workers.

    Workers are measured at once, because the cores of a machine share caches and memory, and hyperthreads share a
    core. Time is CPU time of the workers, so that other load on the machine has little effect.

    Args:
        config: Config of the worker; networks and controllers have initial weights.
        seconds: Minimum CPU seconds of each of the two measurements; episodes run to their end.
        workers: Number of workers, one process each.

    Returns:
        Agent-steps/s with all lanes, and with one.
    """
    # Spawned, because the parent's threads would not survive a fork. Ctrl-C ends the processes at once: it reaches the
    # whole process group.
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    ) as processes:
        rates = list(processes.map(worker_rates, [config] * workers, [seconds] * workers))
    all_lanes, one_lane = np.mean(rates, axis=0)
    return float(all_lanes), float(one_lane)


def worker_rates(config: RunConfig, seconds: float) -> tuple[float, float]:
    """Measure one worker in this process, as ``measure_rates`` does."""
    with num_threads(1):
        vae, mdnrnn = untrained_networks(config)
        worker = RolloutWorker(config.env, config.agent, to_bytes(vae), to_bytes(mdnrnn))
        lanes = config.rollouts.lanes
        return _rate(worker, config, lanes, seconds), _rate(worker, config, 1, seconds)


def _rate(worker: RolloutWorker, config: RunConfig, lanes: int, seconds: float) -> float:
    """Measure agent-steps/s on a new track for each episode, so that no track is reused."""
    shape = ControllerShape.of_agent(config.agent, traits_of(config.env).actions.size)
    candidate = generator(0, "bench").normal(0, 0.1, (1, shape.num_parameters))
    warm_up = training_jobs(config, 1, candidate, episodes=lanes)
    list(worker.run([replace(job, max_steps=_WARM_UP_STEPS) for job in warm_up]))
    steps = 0
    began = time.process_time()
    for generation in count(2):
        jobs = training_jobs(config, generation, candidate, episodes=lanes)
        steps += sum(result.steps for _, result in worker.run(jobs))
        elapsed = time.process_time() - began
        if elapsed >= seconds:
            break
    return steps / config.env.action_repeat / elapsed
