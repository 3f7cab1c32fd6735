"""``bench agent``: the whole agent loop, on a single worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.seeding import generator
from pipeline.base.threads import num_threads
from pipeline.bench.measure import BenchResult, Side, compare
from pipeline.bench.table import AGENT
from pipeline.config.schema import RunConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.car_sprites import reduce_observation
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import training_jobs
from pipeline.models.controller import ControllerShape
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.precision import native_precisions
from pipeline.models.vae import Vae, frames_to_input
from pipeline.models.weights import new_mdnrnn, new_vae, to_bytes
from pipeline.rollouts.loop import RolloutWorker

_EPISODE_STEPS = 250
_EPISODES_PER_LANE = 4
_ENGINES = {"openvino": "OpenVINO", "torch": "torch"}


def bench_agent(seconds: float) -> BenchResult:
    """Compare the naive agent loop (batch 1, float32, encoder only) with a rollout worker at every native precision."""
    config = RunConfig.model_validate(
        {
            "env": {"max_episode_steps": _EPISODE_STEPS},
            "collect": {"episode_steps": _EPISODE_STEPS},
            "mdnrnn": {"window": _EPISODE_STEPS},
            "evolve": {"episodes": 1},
            "rollouts": {"micro_batch": 8, "lanes": 16},
        }
    )
    vae, mdnrnn = untrained_networks(config)
    rng = generator(0, "bench")
    shape = ControllerShape.of_agent(config.agent, traits_of(config.env).actions.size)
    population = rng.normal(0, 0.1, (_EPISODES_PER_LANE * config.rollouts.lanes, shape.num_parameters))

    def lanes(engine: str, precision: str) -> Side:
        rollouts = config.rollouts.model_copy(update={"engine": engine, "precision": precision})
        worker = RolloutWorker(config.env, replace(config.agent, rollouts=rollouts), to_bytes(vae), to_bytes(mdnrnn))
        generations = count(1)
        return Side(
            f"{config.rollouts.lanes} lanes, {_ENGINES[engine]} {precision}",
            lambda: sum(result.steps for _, result in worker.run(training_jobs(config, next(generations), population))),
        )

    native = native_precisions()
    *others, fastest = native
    with num_threads(1):
        return compare(
            AGENT,
            "agent-steps/s/core",
            Side(
                "batch 1, torch float32, Gymnasium's rendering",
                naive_loop(config.env.view, _EPISODE_STEPS, vae, mdnrnn, population[0].astype(np.float32)),
            ),
            lanes("openvino", fastest),
            seconds=seconds,
            threads=1,
            others=[
                *(lanes("openvino", precision) for precision in others),
                *(lanes("torch", precision) for precision in native if precision != "int8"),
            ],
        )


def untrained_networks(config: RunConfig) -> tuple[Vae, MdnRnn]:
    """Make V and M with initial weights, V calibrated so that every precision accepts it."""
    vae = new_vae(config.agent)
    vae.calibrate(frames_to_input(generator(0, "bench").integers(0, 256, (64, *FRAME_SHAPE), np.uint8)))
    return vae, new_mdnrnn(config.agent, traits_of(config.env).actions.size)


def naive_loop(
    view: str, max_steps: int, vae: Vae, mdnrnn: MdnRnn, parameters: NDArray[np.float32]
) -> Callable[[], int]:
    """Make a straightforward loop: one environment, one frame at a time; each call runs 50 steps.

    Args:
        view: View of observations.
        max_steps: Maximum number of steps of an episode.
        vae: V.
        mdnrnn: M.
        parameters: Parameters of a linear controller on z and h, (n,) float32.
    """
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
