"""Evolutions with killed or hanging workers, and environments that raise or return no finite number."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.executor import RayExecutor
from pipeline.base import seeding
from pipeline.base.errors import JobError
from pipeline.base.threads import num_threads
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import MDNRNN_WEIGHTS, VAE_WEIGHTS
from pipeline.evolution.fitness import scored_jobs, training_jobs
from pipeline.evolution.search import Search
from pipeline.evolution.state import EvolutionState
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Executor
from pipeline.models.controller import ControllerShape
from pipeline.rollouts.jobs import RolloutJob
from pipeline.rollouts.loop import RolloutWorker
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest, read_verified, require_manifest
from tests.cluster.clocks import hanging_counts_as_silent, no_copies
from tests.cluster.faulty import ENV_ID, ask_for, ask_for_deaths_in_turn, faults_folder, hung_folder
from tests.counting import ACTION_SIZE

BEFORE_EVOLVE, EVOLVE, EVALUATE = STAGES[:4], STAGES[4:5], STAGES[5:6]
POPULATION, EPISODES, GENERATIONS = 5, 3, 3

pytestmark = pytest.mark.usefixtures("local_ray")


def config(workers: int = 2, **execution: Any) -> RunConfig:
    """A config in which each training episode has another track, so that a track identifies an episode."""
    return RunConfig.model_validate(
        {
            "env": {"id": ENV_ID, "max_episode_steps": 30},
            "collect": {"policy": "white", "episodes": 4, "episode_steps": 20, "episodes_per_shard": 2},
            "vae": {"epochs": 1, "batch_size": 16, "validation_fraction": 0.3, "z_size": 8},
            "mdnrnn": {"window": 8, "epochs": 1, "batch_size": 4, "hidden_size": 16, "validation_fraction": 0.3},
            "rollouts": {"micro_batch": 4, "lanes": 2},
            "evolve": {
                "population_size": POPULATION, "episodes": EPISODES, "generations": GENERATIONS,
                "common_tracks": False, "validate_every": 2, "validation_episodes": 3,
            },
            "evaluate": {"episodes": 4, "film_seconds": 0.2},
            "execution": {"workers": workers, **execution},
        }
    )  # fmt: skip


def episode(generation: int, candidate: int, number: int) -> RolloutJob:
    """A training episode of the run; its parameters do not matter here."""
    jobs = training_jobs(config(), generation, np.zeros((POPULATION, 1)))
    return next(job for job in jobs if (job.candidate, job.episode) == (candidate, number))


@pytest.fixture(scope="module")
def trained(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evolution has yet to begin."""
    folder = tmp_path_factory.mktemp("trained")
    run_stages(config(), LocalStore(folder), InProcessExecutor(), BEFORE_EVOLVE)
    return folder


@pytest.fixture(scope="module")
def reference(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the evolution in one process and without faults."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("reference") / "run")
    run_stages(config(), LocalStore(folder), InProcessExecutor(), EVOLVE)
    return evolved(folder)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A run whose evolution has yet to begin, and an empty folder of faults."""
    for made in (faults_folder(), hung_folder()):
        made.mkdir()
    yield shutil.copytree(trained, tmp_path / "run")
    for made in (faults_folder(), hung_folder()):
        shutil.rmtree(made)


def evolved(folder: Path) -> dict[str, Any]:
    """The reproducible results: the history without its times, and the bytes of the controllers."""
    store = LocalStore(folder)
    records = require_manifest(store, "evolution").records
    (history,) = (read_verified(store, record) for name, record in records.items() if name.startswith("history"))
    (controllers,) = (read_verified(store, r) for name, r in records.items() if name.startswith("controllers"))
    clocks = ("seconds", "time")
    rows = [{key: value for key, value in row.items() if key not in clocks} for row in json.loads(history)]
    return {"history": rows, "controllers": controllers}


def evolve(folder: Path, workers: int = 2, **execution: Any) -> int:
    """Evolve on Ray; returns the number of retries."""
    chosen = config(workers, **execution)
    store = LocalStore(folder)
    run_stages(chosen, store, RayExecutor(chosen.execution), EVOLVE)
    return int(require_manifest(store, "evolution").info["retries"])


def test_reference_covers_the_compared_cases(reference: dict[str, Any]) -> None:
    history = reference["history"]
    assert len(history) == GENERATIONS
    assert all(row["fitness_sd"] > 0 for row in history), "candidates differ"
    assert [row["validation_mean"] is not None for row in history] == [False, True, False]
    assert [row["non_finite"] for row in history] == [0, 0, 0]
    tracks = {episode(g, c, e).track for g in (1, 2, 3) for c in range(POPULATION) for e in range(EPISODES)}
    assert len(tracks) == GENERATIONS * POPULATION * EPISODES


# ---- workers


def test_evolution_with_a_killed_worker_gives_the_same_bits(
    folder: Path, reference: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ask_for("kill", episode(2, 3, 1).track)
    with no_copies():
        assert evolve(folder) >= 1
    assert evolved(folder) == reference
    assert not list(faults_folder().iterdir())
    assert re.search(r"try 1 of 3: its worker died: ", caplog.text)
    assert re.search(r"generation 2: episodes retried: [1-9]", caplog.text)


def test_evolution_with_every_worker_killed_gives_the_same_bits(folder: Path, reference: dict[str, Any]) -> None:
    ask_for_deaths_in_turn(3)
    with no_copies():
        assert evolve(folder, workers=3) >= 3
    assert evolved(folder) == reference
    assert len(list(faults_folder().glob("dead@*"))) == 3


def test_evolution_with_a_hanging_worker_gives_the_same_bits(
    folder: Path, reference: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ask_for("hang", episode(2, 3, 1).track)
    with caplog.at_level(logging.INFO):
        evolve(folder)
    assert evolved(folder) == reference
    assert not list(faults_folder().iterdir())
    assert "jobs are also run elsewhere: no answer" in caplog.text, "a copy runs long before the worker is replaced"


def test_evolution_with_its_only_worker_hanging_gives_the_same_bits(
    folder: Path, reference: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ask_for("hang", episode(2, 3, 1).track)
    with hanging_counts_as_silent(hung_folder()):
        assert evolve(folder, workers=1) >= 1
    assert evolved(folder) == reference
    assert not list(faults_folder().iterdir())
    assert "its worker hung" in caplog.text


def test_episode_that_always_hangs_ends_the_session_and_the_run_can_resume(
    folder: Path, reference: dict[str, Any]
) -> None:
    hanging = episode(2, 3, 1)
    (always,) = ask_for("hang", hanging.track, times=None)
    said = rf"^job {re.escape(str(hanging.id))} was tried 2 times; .* hung.*log: \S+\.err"
    with hanging_counts_as_silent(hung_folder()), pytest.raises(JobError, match=said):
        evolve(folder, max_attempts=2)
    always.unlink()
    evolve(folder)
    assert evolved(folder) == reference


def test_worker_that_hangs_in_its_construction_is_replaced(
    folder: Path, reference: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (once,) = ask_for("hang in construction", 0)
    with hanging_counts_as_silent(hung_folder()):
        evolve(folder, workers=1)
    assert evolved(folder) == reference
    assert not once.exists()
    assert "a worker is replaced: its worker hung" in caplog.text


def test_workers_that_always_hang_in_their_construction_end_the_session(
    folder: Path, reference: dict[str, Any]
) -> None:
    (always,) = ask_for("hang in construction", 0, times=None)
    said = r"^2 workers failed to start; the last one: .* hung.*log: \S+\.err"
    with hanging_counts_as_silent(hung_folder()), pytest.raises(JobError, match=said):
        evolve(folder, workers=1, max_attempts=2)
    always.unlink()
    evolve(folder)
    assert evolved(folder) == reference


# ---- environments that raise


@pytest.mark.parametrize("fault", ["raise", "raise in reset"])
def test_evolution_with_a_raising_environment_gives_the_same_bits(
    folder: Path, reference: dict[str, Any], fault: str
) -> None:
    for number in range(EPISODES):
        ask_for(fault, episode(2, 1, number).track, times=2)  # all three jobs are in one call
    with no_copies():
        assert evolve(folder) == 2 * EPISODES, "only jobs that raised are tried again"
    assert evolved(folder) == reference
    assert not list(faults_folder().iterdir())


def executor_of(kind: str) -> Executor:
    return InProcessExecutor() if kind == "in-process" else RayExecutor(config().execution)


@pytest.mark.parametrize("kind", ["in-process", "ray"])
@pytest.mark.parametrize(("fault", "when"), [("raise", "in step 2"), ("raise in reset", "in reset")])
def test_episode_that_always_raises_is_named_and_the_run_can_resume(
    folder: Path, reference: dict[str, Any], kind: str, fault: str, when: str
) -> None:
    raising = episode(2, 3, 1)
    (always,) = ask_for(fault, raising.track, times=None)
    said = (
        r"was tried 3 times; the last time it failed: the environment raised in episode 1 of candidate 3 in generation "
        rf"2 \(train\), on track seed {raising.track}, {when}: FloatingPointError\(.*in the same way each time"
    )
    with pytest.raises(JobError, match=said) as caught:
        run_stages(config(), LocalStore(folder), executor_of(kind), EVOLVE)
    assert ("the worker's log: " in str(caught.value)) == (kind == "ray")
    assert Checkpoints(LocalStore(folder), "evolution").steps() == [1]
    always.unlink()
    evolve(folder)
    assert evolved(folder) == reference


def test_test_episode_that_raises_is_run_again_and_then_named(folder: Path) -> None:
    chosen, store = config(), LocalStore(folder)
    run_stages(chosen, store, InProcessExecutor(), EVOLVE)
    ask_for("raise", 1)
    (always,) = ask_for("raise", 2, times=None)
    with pytest.raises(JobError, match=r"episode 2 of candidate \d+ in generation 0 \(test\), on track seed 2,"):
        run_stages(chosen, store, InProcessExecutor(), EVALUATE)
    always.unlink()
    run_stages(chosen, store, InProcessExecutor(), EVALUATE)
    assert require_manifest(store, "evaluation").info["retries"] == 0


# ---- returns that are not finite


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_episode_without_a_finite_return_is_run_once_more(folder: Path, reference: dict[str, Any], value: str) -> None:
    ask_for(value, episode(2, 3, 1).track)
    ask_for(value, episode(1, 0, 0).track)
    ask_for(value, config().tracks.validation.start + 1)
    assert evolve(folder) == 0
    assert evolved(folder) == reference
    assert not list(faults_folder().iterdir())


@pytest.mark.parametrize("kind", ["in-process", "ray"])
def test_episode_never_finite_counts_as_the_worst_fitness_minus_one(
    folder: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    chosen = config()
    evolve_config = chosen.evolve.model_copy(update={"generations": 1, "validate_every": 1})
    chosen = chosen.model_copy(update={"evolve": evolve_config})
    store = LocalStore(folder)
    vae, mdnrnn = (
        read_verified(store, require_manifest(store, prefix).records[name])
        for prefix, name in (("vae", VAE_WEIGHTS), ("mdnrnn", MDNRNN_WEIGHTS))
    )

    def returns(jobs: list[RolloutJob]) -> list[float]:
        results = dict(RolloutWorker(chosen.env, chosen.agent, vae, mdnrnn).run(jobs))
        assert sum(result.steps for result in results.values()) > 0
        return [results[job.id].episode_return for job in jobs]

    # Computed here without faults: five candidates with three episodes each.
    with num_threads(1):
        search = Search(
            np.zeros(ControllerShape.of_agent(chosen.agent, ACTION_SIZE).num_parameters),
            sigma=chosen.evolve.sigma,
            population_size=POPULATION,
            seed=seeding.derive(chosen.seed, "evolve/cma"),
        )
        candidates = search.ask()
        by_candidate = np.array(returns(training_jobs(chosen, 1, candidates))).reshape(POPULATION, EPISODES)
        fitness = by_candidate.mean(axis=1)
        worst = min(np.delete(fitness, 3))
        fitness[3] = (by_candidate[3, 0] + (worst - 1) + by_candidate[3, 2]) / 3
        search.tell(candidates, fitness.tolist())

    bad, first_track = episode(1, 3, 1), chosen.tracks.validation.start
    ask_for("nan", bad.track, times=None)
    ask_for("-inf", first_track, times=None)
    executor = InProcessExecutor() if kind == "in-process" else RayExecutor(chosen.execution)
    with caplog.at_level(logging.WARNING):
        run_stages(chosen, store, executor, EVOLVE)
    shutil.rmtree(faults_folder())
    faults_folder().mkdir()
    (row,) = evolved(folder)["history"]
    assert row["fitness_mean"] == pytest.approx(fitness.mean(), abs=1e-12)
    assert row["fitness_min"] == pytest.approx(fitness.min(), abs=1e-12)
    assert row["fitness_sd"] == pytest.approx(fitness.std(), abs=1e-12)

    latest = Checkpoints(store, "evolution").latest()
    assert latest is not None
    mean = EvolutionState.from_bytes(latest[1]).search.mean
    np.testing.assert_allclose(mean, search.mean, atol=1e-9)
    validation = returns(
        scored_jobs(
            chosen.seed, purpose="validate", generation=1, candidate=0, parameters=mean, first_track=first_track,
            episodes=range(3), max_steps=chosen.env.max_episode_steps,
        )
    )  # fmt: skip
    assert row["validation_mean"] == pytest.approx(
        (min(validation[1:]) - 1 + validation[1] + validation[2]) / 3, abs=1e-12
    )

    assert row["non_finite"] == 2
    (logged,) = map(json.loads, store.read("evolution/metrics.jsonl").splitlines())
    assert logged["non_finite"] == 2
    assert f"episode 1 of candidate 3 in generation 1 (train), on track seed {bad.track}: nan" in caplog.text
    assert f"episode 0 of candidate 0 in generation 1 (validate), on track seed {first_track}: -inf" in caplog.text


def test_test_episode_without_a_finite_return_fails_the_evaluation(folder: Path) -> None:
    chosen, store = config(), LocalStore(folder)
    run_stages(chosen, store, InProcessExecutor(), EVOLVE)
    (always,) = ask_for("nan", 2, times=None)
    ask_for("nan", 1)
    with pytest.raises(JobError, match=r"^the return of episode 2 of .*\(test\), on track seed 2 is nan .*, twice:"):
        run_stages(chosen, store, InProcessExecutor(), EVALUATE)
    assert read_manifest(store, "evaluation") is None
    always.unlink()
    run_stages(chosen, store, InProcessExecutor(), EVALUATE)
    summary = require_manifest(store, "evaluation").info["controllers"]
    assert all(np.isfinite(row["mean"]) and row["episodes"] == 4 for row in summary.values())
