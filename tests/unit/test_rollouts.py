"""The lane-batched rollout against a plain loop: a result depends only on its job, to the bit."""

from __future__ import annotations

import math
import pickle
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.base.errors import DamagedDataError, EpisodeError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.envs.environment import Environment, Step
from pipeline.models.controller import ControllerShape
from pipeline.models.weights import new_mdnrnn, new_vae, to_bytes
from pipeline.rollouts.jobs import RolloutJob, RolloutResult
from pipeline.rollouts.loop import RolloutWorker
from tests.counting import (
    ACTION_SIZE,
    CountingEnv,
    bonus_period,
    counting_config,
    episode_length,
    own_end,
    reward_of,
    track_and_step,
)
from tests.unit.test_controller import by_hand
from tests.unit.test_forward import lstm_by_hand

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 16
Results = dict[tuple[str, int, int, int], RolloutResult]


def make_worker(config: RunConfig, **arguments: Any) -> RolloutWorker:
    return RolloutWorker(
        config.env,
        config.agent,
        to_bytes(new_vae(config.agent)),
        to_bytes(new_mdnrnn(config.agent, ACTION_SIZE)),
        **arguments,
    )


def num_parameters(config: RunConfig) -> int:
    return ControllerShape.of_agent(config.agent, ACTION_SIZE).num_parameters


def make_jobs(config: RunConfig, count: int, *, spread: float = 2.0, **changes: Any) -> list[RolloutJob]:
    """Jobs of different controllers on different tracks: episodes of unequal length and unequal return."""
    rng = np.random.default_rng(0)
    return [
        RolloutJob(
            purpose="train",
            generation=1,
            candidate=number // 2,
            episode=number % 2,
            track=100 + 7 * number,
            noise_seed=1000 + number,
            parameters=(spread * rng.standard_normal(num_parameters(config))).astype(np.float32),
            max_steps=changes.get("max_steps", LIMIT),
            stall_steps=changes.get("stall_steps"),
        )
        for number in range(count)
    ]


def run_jobs(worker: RolloutWorker, jobs: Sequence[RolloutJob]) -> Results:
    pairs = list(worker.run(jobs))
    results = dict(pairs)
    assert len(pairs) == len(results), "a job has more than one result"
    return results


# ---- against a plain loop


def plain_episode(config: RunConfig, job: RolloutJob) -> RolloutResult:
    """One episode as in the paper's code: z of the frame; the action from z, c and h; then M's step with it."""
    vae, mdnrnn = new_vae(config.agent), new_mdnrnn(config.agent, ACTION_SIZE)
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    noise = np.random.Generator(np.random.PCG64(job.noise_seed))
    env = CountingEnv(config.env)
    frame = env.reset(job.track)
    h: NDArray[np.float64] = np.zeros((1, config.mdnrnn.hidden_size))
    c = h
    total, steps = 0.0, 0
    while True:
        with torch.no_grad():
            mu, logvar = vae.encode(torch.from_numpy(frame.transpose(2, 0, 1)[None].astype(np.float32) / 255))
        z = mu.numpy()
        if config.controller.z == "sample":
            z = z + np.exp(logvar.numpy() / 2) * noise.standard_normal(z.shape[1], np.float32)
        seen = {"z": z[0], "zh": np.concatenate([z[0], h[0]]), "zch": np.concatenate([z[0], c[0], h[0]])}
        output = by_hand(shape, job.parameters, seen[config.controller.features])
        action = np.array([[np.tanh(output[0]), (np.tanh(output[1]) + 1) / 2]], np.float32)
        h, c = lstm_by_hand(mdnrnn, z, action, h, c)
        frame, reward, terminated, truncated = env.step(action[0])
        total, steps = total + reward, steps + config.env.action_repeat
        if terminated or truncated or steps >= job.max_steps:
            return RolloutResult(total, steps, terminated, truncated)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"controller.features": "z"},
        {"controller.features": "zch"},
        {"controller.hidden_size": 4},
        {"controller.bias": False},
        {"controller.z": "mu"},
        {"env.action_repeat": 3, "mdnrnn.window": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_results_equal_a_plain_loop(overrides: dict[str, Any], micro_batch: int) -> None:
    config = counting_config({"rollouts.micro_batch": micro_batch, **overrides})
    jobs = make_jobs(config, 5, max_steps=14)
    results = run_jobs(make_worker(config), jobs)
    for job in jobs:
        want = plain_episode(config, job)
        got = results[job.id]
        assert (got.steps, got.terminated, got.truncated) == (want.steps, want.terminated, want.truncated)
        assert got.episode_return == pytest.approx(want.episode_return, abs=2e-4)


def test_returns_are_sensitive_to_hidden_states_and_noise() -> None:
    """The comparison above relies on this: h and z change these returns by far more than its tolerance."""
    config = counting_config({"rollouts.micro_batch": 1})
    job = make_jobs(config, 1)[0]
    (result,) = run_jobs(make_worker(config), [job]).values()
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    blind = job.parameters.copy()
    weights = blind[: shape.action_size * shape.feature_size].reshape(shape.action_size, shape.feature_size)
    weights[:, config.vae.z_size :] = 0
    (without_h,) = run_jobs(make_worker(config), [replace(job, parameters=blind)]).values()
    (other_noise,) = run_jobs(make_worker(config), [replace(job, noise_seed=5)]).values()
    assert abs(result.episode_return - without_h.episode_return) > 0.01
    assert abs(result.episode_return - other_noise.episode_return) > 0.01


# ---- what a result depends on


@pytest.mark.parametrize("features", ["z", "zh", "zch"])
def test_results_do_not_depend_on_lanes_order_or_other_jobs(features: str) -> None:
    overrides = {"controller.features": features, "rollouts.micro_batch": 4}
    config = counting_config(overrides)
    jobs = make_jobs(config, 11)
    reference = run_jobs(make_worker(config), jobs)
    assert set(reference) == {job.id for job in jobs}
    assert len({result.steps for result in reference.values()}) > 3
    assert len({result.episode_return for result in reference.values()}) == len(jobs)

    for lanes in (1, 3, 8):
        worker = make_worker(counting_config({**overrides, "rollouts.lanes": lanes}))
        assert run_jobs(worker, jobs) == reference, f"{lanes} lanes"
        assert run_jobs(worker, jobs[::-1]) == reference, f"{lanes} lanes, reversed"
    worker = make_worker(counting_config({**overrides, "rollouts.lanes": 5}))
    shuffled = [jobs[i] for i in np.random.default_rng(3).permutation(len(jobs))]
    in_parts: Results = {}
    for part in (shuffled[:1], shuffled[1:8], shuffled[8:]):
        in_parts |= run_jobs(worker, part)
    assert in_parts == reference, "in three calls"
    for job in jobs[:4]:
        assert run_jobs(worker, [job]) == {job.id: reference[job.id]}, "alone"


def test_repeated_job_gives_the_same_bits() -> None:
    config = counting_config()
    jobs = make_jobs(config, 4)
    worker = make_worker(config)
    assert run_jobs(worker, jobs) == run_jobs(worker, jobs)


def test_worker_works_after_an_abandoned_call() -> None:
    config = counting_config()
    jobs = make_jobs(config, 9)
    reference = run_jobs(make_worker(config), jobs)
    worker = make_worker(config)
    for wanted in (1, 4):
        running = worker.run(jobs)
        assert isinstance(running, Generator)
        for _ in range(wanted):
            next(running)
        running.close()
    assert run_jobs(worker, jobs) == reference


def test_no_jobs_give_no_results() -> None:
    assert run_jobs(make_worker(counting_config()), []) == {}


def test_worker_creates_at_most_one_environment_per_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    init = CountingEnv.__init__

    def counted(self: CountingEnv, *arguments: Any) -> None:
        made.append(self)
        init(self, *arguments)

    monkeypatch.setattr(CountingEnv, "__init__", counted)
    config = counting_config({"rollouts.lanes": 3})
    worker = make_worker(config)
    jobs = make_jobs(config, 10)
    for _ in range(3):
        run_jobs(worker, jobs)
        abandoned = worker.run(jobs)
        assert isinstance(abandoned, Generator)
        next(abandoned)
        abandoned.close()
    assert len(made) == 3


# ---- environments that raise


class BreakingEnv(CountingEnv):
    """Raises once in step or reset on a track, and is unusable after that."""

    breaks: ClassVar[dict[int, str]] = {}
    made: ClassVar[list[BreakingEnv]] = []

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self.broken = self.closed = False
        BreakingEnv.made.append(self)

    def reset(self, track: int) -> NDArray[np.uint8]:
        assert not self.broken, "an environment that raised is used again"
        self._break("reset", track)
        return super().reset(track)

    def step(self, action: NDArray[np.float32]) -> Step:
        assert self._track is not None
        if self._step == 2:
            self._break("step", self._track)
        return super().step(action)

    def close(self) -> None:
        self.closed = True
        raise OSError("not even that")

    def _break(self, where: str, track: int) -> None:
        if self.breaks.get(track) == where:
            del self.breaks[track]
            self.broken = True
            raise FloatingPointError("the car is nowhere")


@pytest.mark.parametrize(("where", "said"), [("reset", "in reset"), ("step", "in step 3")])
@pytest.mark.parametrize("number", [0, 1, 2, 5, 8])
def test_raising_environment_is_named_and_not_used_again(
    monkeypatch: pytest.MonkeyPatch, where: str, said: str, number: int
) -> None:
    config = counting_config()
    jobs = make_jobs(config, 9)
    reference = run_jobs(make_worker(config), jobs)
    broken = jobs[number]
    monkeypatch.setattr(BreakingEnv, "breaks", {broken.track: where})
    monkeypatch.setattr(BreakingEnv, "made", [])
    config = counting_config({"env.id": "tests.unit.test_rollouts:BreakingEnv"})
    worker = make_worker(config)
    with pytest.raises(EpisodeError) as caught:
        list(worker.run(jobs))
    assert str(caught.value) == (
        f"the environment raised in episode {number % 2} of candidate {number // 2} in generation 1 (train), on track "
        f"seed {broken.track}, {said}: FloatingPointError('the car is nowhere')"
    )
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.job_id) == (str(caught.value), broken.id)
    assert run_jobs(worker, jobs) == reference, "the rest of the worker is as it was"
    assert [env.closed for env in BreakingEnv.made] == [env.broken for env in BreakingEnv.made]
    assert len(BreakingEnv.made) == config.rollouts.lanes + 1


def test_nan_action_ends_only_its_own_episode() -> None:
    """The environment never sees it: it might raise anything."""
    config = counting_config()
    jobs = make_jobs(config, 9)
    reference = run_jobs(make_worker(config), jobs)
    broken = replace(jobs[4], parameters=np.full_like(jobs[4].parameters, np.nan))
    results = run_jobs(make_worker(config), [*jobs[:4], broken, *jobs[5:]])
    ended = results.pop(broken.id)
    assert math.isnan(ended.episode_return) and ended.steps == 0
    del reference[broken.id]
    assert results == reference


# ---- how an episode ends; with parameters of zero the action is (0, 0.5) throughout

STILL = np.array([0.0, 0.5], np.float32)
TRACKS = range(50, 85)


def still_jobs(config: RunConfig, **changes: Any) -> list[RolloutJob]:
    zeros = np.zeros(num_parameters(config), np.float32)
    job = make_jobs(config, 1, **changes)[0]
    return [replace(job, track=track, episode=track, parameters=zeros) for track in TRACKS]


def still_return(track: int, steps: int) -> float:
    total = 0.0
    for step in range(steps):
        total += reward_of(track, step, STILL)
    return total


def test_whole_episode_has_the_environments_end_and_the_sum_of_rewards() -> None:
    config = counting_config()
    results = run_jobs(make_worker(config), still_jobs(config, max_steps=LIMIT + 10))
    for track in TRACKS:
        result = results["train", 1, 0, track]
        end = own_end(track, LIMIT)
        assert result.steps == episode_length(track, LIMIT)
        assert (result.terminated, result.truncated) == (end is not None, end in (None, LIMIT))
        assert result.episode_return == still_return(track, result.steps)


@pytest.mark.parametrize("max_steps", [1, 5, 8])
def test_episode_is_cut_after_max_steps_with_neither_flag(max_steps: int) -> None:
    config = counting_config()
    results = run_jobs(make_worker(config), still_jobs(config, max_steps=max_steps))
    ways = set()
    for track in TRACKS:
        result = results["train", 1, 0, track]
        whole = episode_length(track, LIMIT)
        assert result.steps == min(whole, max_steps)
        assert result.terminated == (own_end(track, LIMIT) == result.steps)
        assert not result.truncated
        assert result.episode_return == still_return(track, result.steps)
        ways.add(result.terminated)
    assert ways == ({False} if max_steps == 1 else {True, False})


@pytest.mark.parametrize("stall_steps", [1, 2, 3, 4])
def test_episode_is_cut_after_stall_steps_without_a_reward(stall_steps: int) -> None:
    config = counting_config()
    results = run_jobs(make_worker(config), still_jobs(config, stall_steps=stall_steps))
    ways = set()
    for track in TRACKS:
        result = results["train", 1, 0, track]
        whole, period = episode_length(track, LIMIT), bonus_period(track)
        # There is a bonus every ``period`` steps: too rare, and the first is never reached; else the count restarts
        # with each, and the episode goes to its end.
        stalls = period > stall_steps
        assert result.steps == (min(whole, stall_steps) if stalls else whole)
        assert result.terminated == (own_end(track, LIMIT) == result.steps)
        ways.add((stalls, whole > 2 * stall_steps))
    assert {(True, True), (False, True)} <= ways


# ---- the rest


def test_watch_gets_each_frame_of_a_single_episode_before_its_step() -> None:
    config = counting_config()
    seen: list[tuple[int, int]] = []

    def watch(env: Environment, frame: NDArray[np.uint8]) -> None:
        assert isinstance(env, CountingEnv)
        assert (env.render()[::4, ::4] == frame).all()
        seen.append(track_and_step(frame))

    job = replace(make_jobs(config, 1)[0], track=61)
    (result,) = run_jobs(make_worker(config, watch=watch), [job]).values()
    assert seen == [(61, step) for step in range(result.steps)]


def test_weights_of_another_config_are_refused() -> None:
    config, other = counting_config(), counting_config({"vae.z_size": 6})
    with pytest.raises(DamagedDataError, match="VAE"):
        RolloutWorker(
            config.env, config.agent, to_bytes(new_vae(other.agent)), to_bytes(new_mdnrnn(config.agent, ACTION_SIZE))
        )
    with pytest.raises(DamagedDataError, match="MDN-RNN"):
        RolloutWorker(config.env, config.agent, to_bytes(new_vae(config.agent)), b"not weights")


def test_initial_weights_depend_only_on_the_seed() -> None:
    config = counting_config()
    torch.manual_seed(5)
    first = to_bytes(new_vae(config.agent)), to_bytes(new_mdnrnn(config.agent, ACTION_SIZE))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == after, "torch's own stream was not moved"
    assert (to_bytes(new_vae(config.agent)), to_bytes(new_mdnrnn(config.agent, ACTION_SIZE))) == first
    other = counting_config({"seed": 2})
    assert to_bytes(new_vae(other.agent)) != first[0]
    assert to_bytes(new_mdnrnn(other.agent, ACTION_SIZE)) != first[1]
