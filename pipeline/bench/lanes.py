"""How fast a rollout worker is, with all its lanes at work and with one: what ``world-models plan`` reckons from."""

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
from pipeline.envs.registry import environment_class
from pipeline.evolution.fitness import training_jobs
from pipeline.models.controller import ControllerShape
from pipeline.models.weights import to_bytes
from pipeline.rollouts.loop import RolloutWorker

_WARM_UP_STEPS = 20


def measure_rates(config: RunConfig, seconds: float, workers: int) -> tuple[float, float]:
    """Agent-steps/s of a worker with all its lanes at work, and with one; the mean of so many workers at once.

    All at once, because the cores of a machine share caches and memory, and hyperthreads a core. Seconds are of the
    workers' CPU time, so that what else the machine does only takes turns with them.

    Args:
        config: whose worker it is; networks and controllers are as initialised.
        seconds: that each of the two is measured for, at least; episodes are driven to their ends.
        workers: one process each.
    """
    # Spawned, as the parent's threads would not survive a fork; ended at once by Ctrl-C, which reaches the whole group.
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
    """What ``measure_rates`` measures, of one worker in this process."""
    with num_threads(1):
        vae, mdnrnn = untrained_networks(config)
        worker = RolloutWorker(config, to_bytes(vae), to_bytes(mdnrnn))
        lanes = config.rollouts.lanes
        return _rate(worker, config, lanes, seconds), _rate(worker, config, 1, seconds)


def _rate(worker: RolloutWorker, config: RunConfig, lanes: int, seconds: float) -> float:
    """Every episode has a track of its own, as where a worker drives no candidate after another."""
    evolve = config.evolve.model_copy(update={"episodes": lanes, "episodes_from": []})
    config = config.model_copy(update={"evolve": evolve})
    shape = ControllerShape.of_run(config, environment_class(config.env.id).action_size)
    candidate = generator(0, "bench").normal(0, 0.1, (1, shape.num_parameters))
    list(worker.run([replace(job, max_steps=_WARM_UP_STEPS) for job in training_jobs(config, 1, candidate)]))
    steps = 0
    began = time.process_time()
    for generation in count(2):
        steps += sum(result.steps for _, result in worker.run(training_jobs(config, generation, candidate)))
        elapsed = time.process_time() - began
        if elapsed >= seconds:
            break
    return steps / config.env.action_repeat / elapsed
