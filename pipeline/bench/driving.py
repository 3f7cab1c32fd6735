"""Benches of the environment and of the agent's loop, a core each."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import torch

from pipeline.bench.measure import Comparison, Side, compare
from pipeline.config import RunConfig
from pipeline.envs.car_racing import CarRacing
from pipeline.envs.car_sprites import reduce_observation
from pipeline.evolution.fitness import scored_jobs
from pipeline.models.controller import ControllerShape
from pipeline.models.vae import frames_to_input
from pipeline.models.weights import new_mdnrnn, new_vae, to_bytes
from pipeline.rollouts.loop import RolloutWorker
from pipeline.rollouts.policies import BrownianPolicy
from pipeline.seeding import generator
from pipeline.threads import num_threads

_PIECE_STEPS = 50
_EPISODE_STEPS = 100


def bench_env(seconds: float) -> Comparison:
    """Plain Gymnasium beside the environment that the pipeline drives, resets included."""
    config = RunConfig()
    plain = gymnasium.make("CarRacing-v3", max_episode_steps=_EPISODE_STEPS)
    env = CarRacing(config.env.model_copy(update={"max_episode_steps": _EPISODE_STEPS}))

    def drive(reset: Callable[[int], object], step: Callable[[np.ndarray], bool]) -> Callable[[], int]:
        track = 0
        policy = BrownianPolicy(env, generator(0, "bench"))
        frame = np.zeros((64, 64, 3), np.uint8)
        ended = True

        def work() -> int:
            nonlocal track, policy, ended
            for _ in range(_PIECE_STEPS):
                if ended:
                    reset(track)
                    policy = BrownianPolicy(env, generator(track, "bench"))
                    track += 1
                ended = step(policy.act(frame))
            return _PIECE_STEPS

        return work

    def step_plain(action: np.ndarray) -> bool:
        _, _, terminated, truncated, _ = plain.step(action)
        return bool(terminated or truncated)

    def step_env(action: np.ndarray) -> bool:
        _, _, terminated, truncated = env.step(action)
        return bool(terminated or truncated)

    with num_threads(1):
        return compare(
            "env",
            "steps/s/core",
            Side("Gymnasium CarRacing-v3, 96x96", drive(lambda track: plain.reset(seed=track), step_plain)),
            Side("the pipeline's, 64x64", drive(env.reset, step_env)),
            seconds=seconds,
            threads=1,
        )


def bench_agent(seconds: float) -> Comparison:
    """The naive agent loop (batch 1, float32, encoder only) beside the lane-batched one."""
    config = RunConfig.model_validate(
        {
            "env": {"max_episode_steps": _EPISODE_STEPS},
            "collect": {"episode_steps": _EPISODE_STEPS},
            "mdnrnn": {"window": 100},
            "rollouts": {"micro_batch": 8, "lanes": 8},
        }
    )
    shape = ControllerShape.of_run(config, CarRacing.action_size)
    parameters = generator(0, "bench/controller").normal(0, 0.1, shape.num_parameters)
    vae, mdnrnn = new_vae(config), new_mdnrnn(config, CarRacing.action_size)
    worker = RolloutWorker(config, to_bytes(vae), to_bytes(mdnrnn))
    track = 0

    def lanes() -> int:
        nonlocal track
        jobs = scored_jobs(
            config,
            purpose="bench",
            generation=0,
            candidate=0,
            parameters=parameters,
            first_track=0,
            episodes=range(track, track + config.rollouts.lanes),
        )
        track += len(jobs)
        return sum(result.steps for _, result in worker.run(jobs))

    with num_threads(1):
        return compare(
            "agent",
            "agent-steps/s/core",
            Side("batch 1, torch float32, Gymnasium's rendering", _naive_loop(config, vae, mdnrnn, parameters)),
            Side(f"{config.rollouts.lanes} lanes", lanes),
            seconds=seconds,
            threads=1,
        )


def _naive_loop(
    config: RunConfig, vae: torch.nn.Module, mdnrnn: torch.nn.Module, parameters: np.ndarray
) -> Callable[[], int]:
    """What one would write first: one environment, one frame at a time."""
    env = gymnasium.make("CarRacing-v3", max_episode_steps=config.env.max_episode_steps)
    weights = torch.from_numpy(parameters[:864].reshape(3, 288)).float()
    bias = torch.from_numpy(parameters[864:]).float()
    track = 0

    @torch.no_grad()
    def episode() -> int:
        nonlocal track
        observation, _ = env.reset(seed=track)
        track += 1
        state = mdnrnn.initial_state(1)  # type: ignore[operator]
        steps, ended = 0, False
        while not ended:
            frame = frames_to_input(reduce_observation(observation, config.env.view)[None])
            mu, logvar = vae.encode(frame)  # type: ignore[operator]
            z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
            action = torch.tanh(weights @ torch.cat([z[0], state[0][0, 0]]) + bias)
            action[1] = (action[1] + 1) / 2
            action[2] = action[2].clamp(min=0)
            _, state = mdnrnn.lstm(torch.cat([z[0], action])[None, None], state)  # type: ignore[operator]
            observation, _, terminated, truncated, _ = env.step(action.numpy())
            steps += 1
            ended = terminated or truncated
        return steps

    return episode
