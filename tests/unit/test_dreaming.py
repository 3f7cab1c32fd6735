"""Controllers in dreams: M with the right noise, independence of the batch, and the end of a dream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError
from pipeline.cli.main import make_parser
from pipeline.config.evolution import DreamConfig
from pipeline.envs.actions import BoxActions
from pipeline.evolution.fitness import training_jobs, validation_dreams
from pipeline.evolution.pools import ExclusivePool, TaskPool, open_dream_pool, read_starts, run_dreams
from pipeline.evolution.state import EvolutionState
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Resources
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.mdnrnn import MdnRnn, sample_mixture
from pipeline.models.weights import new_mdnrnn, to_bytes
from pipeline.planning import preflight
from pipeline.rollouts.dreaming import GPU_BATCH, DreamWorker, Starts
from pipeline.rollouts.jobs import RolloutJob, RolloutResult
from pipeline.run import run_stages
from pipeline.stages import evolve
from pipeline.stages.table import STAGES
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest
from pipeline.storage.store import Store
from tests.counting import ACTION_SIZE, counting_config
from tests.made_run import put_data

ACTIONS = BoxActions([-1.0, 0.0], [1.0, 1.0])
HEADS = {"mdnrnn.reward_weight": 1.0, "mdnrnn.done_weight": 1.0, "evolve.environment": "dream"}


def config_of(**more: Any) -> Any:
    keys = {f"dream.{key}": value for key, value in more.items() if "." not in key}
    return counting_config({**HEADS, "controller.features": "zch", **keys, **{k: more[k] for k in more if "." in k}})


def m_of(config: Any, *, done_bias: float = 0.0) -> MdnRnn:
    """An M with weights large enough that its dreams vary."""
    mdnrnn = new_mdnrnn(config.agent, ACTION_SIZE)
    with torch.no_grad():
        for parameter in mdnrnn.parameters():
            parameter.mul_(3)
        mdnrnn.heads.bias[-1] = done_bias
    return mdnrnn


def starts_of(config: Any, count: int = 5) -> Starts:
    rng = np.random.default_rng(2)
    mu, logvar = rng.standard_normal((2, count, config.vae.z_size)).astype(np.float32)
    return Starts(mu, logvar)


def jobs_of(config: Any, count: int, max_steps: int = 40) -> list[RolloutJob]:
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    rng = np.random.default_rng(3)
    return [
        RolloutJob(
            "train", 1, candidate, 0, track=0, noise_seed=100 + candidate,
            parameters=rng.normal(0, 1, shape.num_parameters).astype(np.float32), max_steps=max_steps,
        )
        for candidate in range(count)
    ]  # fmt: skip


def worker_of(config: Any, mdnrnn: MdnRnn) -> DreamWorker:
    return DreamWorker(config.agent, config.dream, ACTIONS, to_bytes(mdnrnn), starts_of(config))


def dream_alone(config: Any, mdnrnn: MdnRnn, job: RolloutJob) -> RolloutResult:
    """A single dream, computed step by step with the density of ``MdnRnn.forward``."""
    starts, dream = starts_of(config), config.dream
    stream = np.random.Generator(np.random.PCG64(job.noise_seed))
    start = int(stream.integers(len(starts.mu)))
    noise = stream.standard_normal(config.vae.z_size, np.float32)
    z = torch.from_numpy(starts.mu[start] + np.exp(starts.logvar[start] / 2) * noise)[None, None]
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    controller = ControllerBatch(shape, 1)
    controller.set_row(0, job.parameters)
    state = mdnrnn.initial_state(1)
    total = 0.0
    for step in range(job.max_steps):
        if step % 32 == 0:
            uniform, normal = (
                np.empty((32, config.vae.z_size), np.float32),
                np.empty((32, config.vae.z_size), np.float32),
            )
            stream.random(dtype=np.float32, out=uniform)
            stream.standard_normal(dtype=np.float32, out=normal)
        parts = {"z": z[0].numpy(), "c": state[1][0].numpy(), "h": state[0][0].numpy()}
        features = np.concatenate([parts[name] for name in "zch"], axis=1)
        action = torch.from_numpy(ACTIONS.squash(controller.outputs(features)))[None]
        with torch.no_grad():
            prediction, state = mdnrnn(z, action, state)
        chosen, around = (torch.from_numpy(part[step % 32])[None, None] for part in (uniform, normal))
        z = sample_mixture(prediction.mixture, dream.temperature, chosen, around)
        assert prediction.reward is not None and prediction.done_logit is not None
        total += float(prediction.reward) if dream.reward == "model" else 1.0
        if float(torch.sigmoid(prediction.done_logit)) > dream.end_probability:
            return RolloutResult(total, step + 1, terminated=True, truncated=False)
    return RolloutResult(total, job.max_steps, terminated=False, truncated=True)


@pytest.mark.parametrize("reward", ["survival", "model"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_dream_equals_m_stepped_with_its_own_noise(reward: str, temperature: float) -> None:
    config = config_of(reward=reward, temperature=temperature, micro_batch=4, lanes=6, end_probability=0.7)
    mdnrnn = m_of(config)
    jobs = jobs_of(config, 15)
    results = dict(worker_of(config, mdnrnn).run(jobs))
    assert set(results) == {job.id for job in jobs}
    alone = {job.id: dream_alone(config, mdnrnn, job) for job in jobs}
    lengths = {result.steps for result in alone.values()}
    assert len(lengths) > 3 and 40 in lengths, "some end early, at many steps, and some are cut off"
    for job in jobs:
        found, expected = results[job.id], alone[job.id]
        assert (found.steps, found.terminated, found.truncated) == (
            expected.steps, expected.terminated, expected.truncated
        )  # fmt: skip
        assert found.episode_return == pytest.approx(expected.episode_return, rel=1e-3, abs=1e-3)


def test_bits_of_a_dream_do_not_depend_on_neighbours_or_lanes() -> None:
    config = config_of(reward="model", micro_batch=8, lanes=20, end_probability=0.7, **{"mdnrnn.hidden_size": 64})
    config = config.model_copy(update={"vae": config.vae.model_copy(update={"z_size": 32})})
    mdnrnn = m_of(config)
    jobs = jobs_of(config, 30)
    whole = dict(worker_of(config, mdnrnn).run(jobs))
    assert dict(worker_of(config, mdnrnn).run(reversed(jobs))) == whole
    fewer = config.model_copy(update={"dream": config.dream.model_copy(update={"lanes": 3})})
    assert dict(worker_of(fewer, mdnrnn).run(jobs)) == whole
    worker = worker_of(config, mdnrnn)
    for job in jobs[:6]:
        ((_, result),) = worker.run([job])
        assert result == whole[job.id]


def test_certain_end_ends_all_dreams_and_impossible_end_none() -> None:
    for bias, steps, terminated in ((50.0, 1, True), (-50.0, 40, False)):
        config = config_of(micro_batch=4, lanes=4)
        results = [result for _, result in worker_of(config, m_of(config, done_bias=bias)).run(jobs_of(config, 5))]
        assert {(r.steps, r.terminated, r.truncated) for r in results} == {(steps, terminated, not terminated)}
        assert {r.episode_return for r in results} == {float(steps)}, "1 for each step, the last one too"


def test_action_without_a_number_ends_only_its_own_dream() -> None:
    config = config_of(micro_batch=4, lanes=4)
    jobs = jobs_of(config, 4)
    broken = replace(jobs[1], parameters=np.full_like(jobs[1].parameters, np.nan))
    results = dict(worker_of(config, m_of(config)).run([jobs[0], broken, *jobs[2:]]))
    assert np.isnan(results[broken.id].episode_return)
    whole = dict(worker_of(config, m_of(config)).run(jobs))
    assert all(results[job.id] == whole[job.id] for job in jobs if job is not jobs[1])


def test_gpu_task_runs_all_dreams_in_equal_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU: everything but the device is tested."""
    config = config_of(reward="model", end_probability=0.7, **{"rollouts.engine": "torch"})
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    jobs, mdnrnn = jobs_of(config, 12), m_of(config)
    arguments = (config.agent, config.dream, ACTIONS, to_bytes(mdnrnn), starts_of(config))
    pool = TaskPool(InProcessExecutor(), run_dreams, arguments, Resources())
    found = dict(pool.map(jobs))
    whole = config_of(
        reward="model", end_probability=0.7, micro_batch=GPU_BATCH, lanes=12, **{"rollouts.engine": "torch"}
    )
    assert found == dict(worker_of(whole, mdnrnn).run(jobs))
    assert dict(pool.map(jobs[3:5])) == {job.id: found[job.id] for job in jobs[3:5]}, "regardless of their number"
    assert list(pool.map([])) == [] and (pool.num_workers, pool.retries) == (1, 0)


def test_generation_runs_on_a_gpu_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    config, executor = config_of(), InProcessExecutor()
    arguments = (config.agent, config.dream, ACTIONS, to_bytes(m_of(config)), starts_of(config))
    with open_dream_pool(executor, *arguments) as pool:
        assert not isinstance(pool, TaskPool)
    monkeypatch.setattr(InProcessExecutor, "has_gpu", True)
    with open_dream_pool(executor, *arguments) as pool:
        assert isinstance(pool, TaskPool)
    of_cpu = config.dream.model_copy(update={"device": "cpu"})
    with open_dream_pool(executor, config.agent, of_cpu, *arguments[2:]) as pool:
        assert not isinstance(pool, TaskPool)


# ---- jobs, starts and pools


def test_candidates_share_dreams_and_validations_never_change() -> None:
    config = config_of(max_steps=7)
    jobs = training_jobs(config, 3, np.zeros((4, 9)))
    assert {job.max_steps for job in jobs} == {7}
    seeds = [[job.noise_seed for job in jobs if job.candidate == candidate] for candidate in range(4)]
    assert all(one == seeds[0] for one in seeds) and len(set(seeds[0])) == config.evolve.episodes
    first, second = (
        validation_dreams(config.seed, generation=25, parameters=np.full(9, value), count=5, max_steps=7)
        for value in (0.0, 1.0)
    )
    assert [job.noise_seed for job in first] == [job.noise_seed for job in second]
    assert len({job.id for job in first}) == 5


def test_dreams_start_from_first_frames_or_from_any(store: Store) -> None:
    config = config_of()
    put_data(store, config)
    first = read_starts(config, store)
    anywhere = read_starts(config_of(start="anywhere"), store)
    assert first.mu.shape == first.logvar.shape and first.mu.shape[1] == anywhere.mu.shape[1]
    assert len(anywhere.mu) == 4 * len(first.mu)
    again = read_starts(config_of(start="anywhere"), store)
    np.testing.assert_array_equal(anywhere.mu, again.mu)


class FakePool:
    """A pool with counts of its work."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers, self.retries = num_workers, 2


def test_only_one_pool_is_open_and_its_counts_are_kept() -> None:
    open_now: list[int] = []

    def opening(number: int) -> Any:
        @contextmanager
        def opened() -> Iterator[Any]:
            assert not open_now, "two pools would wait for each other's CPUs"
            open_now.append(number)
            yield FakePool(number)
            open_now.remove(number)

        return opened

    games, dreams = opening(3), opening(5)
    with ExclusivePool() as pools:
        first = pools.get(games)
        assert pools.get(games) is first and pools.retries == 2
        pools.get(dreams)
        assert open_now == [5] and pools.retries == 4
        pools.get(games)
        assert open_now == [3] and pools.retries == 6
    assert open_now == [] and (pools.num_workers, pools.retries) == (5, 6)


def test_dreams_resume_on_the_same_kind_of_device(local_store: LocalStore) -> None:
    config = config_of(max_steps=5, micro_batch=4, lanes=4, **{"evolve.generations": 1, "evolve.validation_dreams": 3})
    run_stages(config, local_store, InProcessExecutor(), STAGES[:5])
    manifest = read_manifest(local_store, "evolution")
    assert manifest is not None and manifest.info["dream_device"] == "cpu"
    state = EvolutionState.from_bytes(Checkpoints(local_store, "evolution").latest()[1])  # type: ignore[index]
    assert state.dream_device == "cpu"
    with pytest.raises(ConfigError, match="the dreams so far ran on cpu, and would continue on cuda"):
        evolve.check_dream_device(state, "cuda", exact=True)
    evolve.check_dream_device(state, "cuda", exact=False)
    assert state.dream_device == "cuda"


def test_evolution_moves_to_the_environment_at_the_set_generation(
    local_store: LocalStore, executor: InProcessExecutor
) -> None:
    config = config_of(
        max_steps=7, micro_batch=4, lanes=4,
        **{"evolve.generations": 4, "evolve.game_from": 3, "evolve.validate_every": 4, "evolve.stall_steps": 9,
           "evolve.validation_dreams": 3},
    )  # fmt: skip
    run_stages(config, local_store, executor)
    history = json.loads(local_store.read("report/report.json"))["history"]
    dreamt, driven = ([row[key] for row in history] for key in ("dream_steps", "env_steps"))
    assert 0 < dreamt[0] < dreamt[1] == dreamt[2] < dreamt[3], "the last ones are dreams of the validation"
    assert driven[0] == driven[1] == 0 < driven[2] < driven[3]
    page = " ".join(local_store.read("report/index.html").decode().split())
    assert "From generation 3 on candidates were scored in the environment" in page
    work = next(row.work for row in preflight.estimate(config) if row.stage == "evolve")
    assert "from generation 3 on in the environment" in work


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"evolve.select": "dream", "evolve.game_from": 3}, "would choose by dreams among generations"),
        ({"evolve.game_from": 4}, "evolve.game_from 4 is above evolve.generations 3"),
        ({"evolve.environment": "game", "evolve.game_from": 3}, "evolve.game_from 3 needs evolve.environment 'dream'"),
        ({"mdnrnn.init": "random"}, "mdnrnn.init 'random' leaves M untrained.* set it to trained"),
        ({"mdnrnn.done_weight": 0.0}, "'survival' needs an M that predicts ends.*mdnrnn.done_weight"),
        ({"mdnrnn.reward_weight": 0.0, "dream.reward": "model"}, "'model' needs an M that predicts rewards"),
        ({"evolve.replayed_tracks": 1}, "a dream has no track"),
        ({"evolve.stall_steps": 5}, "evolve.stall_steps has no effect in dreams"),
        ({"evolve.select": "dream", "evolve.target_return": 5.0}, "evolve.target_return would be compared"),
        ({"evolve.environment": "game", "evolve.select": "dream"}, "evolve.select 'dream' needs evolve.environment"),
    ],
)
def test_meaningless_dream_settings_are_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        counting_config({**HEADS, **overrides})


def test_defaults_follow_the_paper() -> None:
    dream = DreamConfig()
    assert (dream.temperature, dream.start, dream.reward, dream.max_steps) == (1.15, "first", "survival", 2100)
    assert isinstance(dream.end_probability, float) and dream.end_probability == 0.5


def test_estimates_count_dreams_and_plan_refuses_them() -> None:
    short, long = (
        next(row for row in preflight.estimate(config_of(max_steps=steps)) if row.stage == "evolve")
        for steps in (10, 10_000)
    )
    assert long.seconds > short.seconds + 0.2
    assert "dreams of up to 10,000 steps" in long.work
    keys = ("mdnrnn.done_weight=1", "evolve.environment=dream", "evolve.episode_steps=null")
    options = make_parser().parse_args(["plan", "smoke", *(word for key in keys for word in ("-o", key))])
    with pytest.raises(ConfigError, match="world-models bench dream"):
        options.perform(options)
