"""Single stages: latents keep their rows, and the statistics of scores follow textbooks."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load, save

from pipeline.base.statistics import summarise
from pipeline.cli.status_text import summarise_scores
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.data.shards import DESCRIPTION_KEY, read_episodes, read_latents
from pipeline.evolution.fitness import run_episodes, scored_jobs
from pipeline.evolution.pools import open_rollout_pool
from pipeline.execution.in_process import InProcessExecutor
from pipeline.models.metadata import to_metadata
from pipeline.models.weights import new_vae, to_bytes
from pipeline.rollouts.jobs import RolloutJob
from pipeline.run import run_stages
from pipeline.stages import collect, encode, evaluate, evolve
from pipeline.stages.description import describe_controller, describe_mdnrnn, describe_vae
from pipeline.stages.table import STAGES
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import Manifest, Record, commit, read_records, read_verified, require_manifest, seal
from pipeline.storage.store import Store
from tests.counting import counting_config, episode_length


def seal_current_data(store: Store, prefix: str) -> None:
    seal(store, prefix, Manifest(prefix, {}, {}, {}, read_records(store, prefix), {}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evolution has yet to begin."""
    folder = tmp_path_factory.mktemp("trained")
    run_stages(counting_config(), LocalStore(folder), InProcessExecutor(), STAGES[:4])
    return folder


@pytest.fixture
def begun(trained: Path, tmp_path: Path) -> LocalStore:
    """A copy for one test of a run whose evolution has yet to begin."""
    return LocalStore(shutil.copytree(trained, tmp_path / "run"))


def test_files_of_a_run_describe_themselves(begun: LocalStore, executor: InProcessExecutor) -> None:
    config = counting_config()
    run_stages(config, begun, executor, STAGES[4:6])
    expected = {
        "vae": describe_vae(config),
        "mdnrnn": describe_mdnrnn(config, 2),
        "evolution": describe_controller(config),
    }
    for prefix, description in expected.items():
        (key,) = [key for key in begun.list(f"{prefix}/data/") if key.endswith(".safetensors")]
        with safe_open(begun.locate(key), "numpy") as weights:
            assert weights.metadata() == to_metadata(description), prefix
    (key,) = begun.list("evaluation/data/")
    table = pq.read_table(begun.locate(key))
    assert "A row is one test episode" in table.schema.metadata[DESCRIPTION_KEY.encode()].decode()
    assert set(table["generation"].to_pylist()) == {config.evolve.generations}
    assert {key.rpartition(".")[2] for key in begun.list("evaluation/files/")} == {"gif", "json", "mp4"}


@pytest.fixture
def ready(store: Store, executor: InProcessExecutor, smoke_config: RunConfig) -> Store:
    """A store with collected frames and a VAE as it was initialised."""
    collect.run(smoke_config, store, executor)
    seal_current_data(store, "rollouts")
    commit(store, "vae", "vae.safetensors", to_bytes(new_vae(smoke_config.agent)))
    seal_current_data(store, "vae")
    return store


def test_encode_keeps_every_row_with_its_own_latents(
    ready: Store, executor: InProcessExecutor, smoke_config: RunConfig, one_thread: None
) -> None:
    encode.run(smoke_config, ready, executor)
    frames, latents = read_records(ready, "rollouts"), read_records(ready, "latents")
    assert {name: (r.rows, r.info["episodes"]) for name, r in frames.items()} == {
        name: (r.rows, r.info["episodes"]) for name, r in latents.items()
    }
    vae = new_vae(smoke_config.agent)
    for name in frames:
        pairs = zip(read_episodes(ready, frames[name]), read_latents(ready, latents[name]), strict=True)
        for source, encoded in pairs:
            assert encoded.id == source.id
            for column in ("actions", "rewards", "terminated", "truncated"):
                assert getattr(encoded, column).tobytes() == getattr(source, column).tobytes()
            with torch.no_grad():
                mu, logvar = vae.encode(torch.from_numpy(source.frames.transpose(0, 3, 1, 2).astype(np.float32) / 255))
            np.testing.assert_allclose(encoded.mu, mu, atol=2e-6)
            np.testing.assert_allclose(encoded.logvar, logvar, atol=2e-6)
            assert len(np.unique(encoded.mu, axis=0)) == len(source), "the rows differ, so a shift would show"


def test_encode_resumes_from_the_existing_shards(
    ready: Store,
    executor: InProcessExecutor,
    smoke_config: RunConfig,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode.run(smoke_config, ready, executor)
    whole = read_records(ready, "latents")
    for name in ("shard-00000.parquet", "shard-00002.parquet"):
        ready.delete(f"latents/records/{name}.json")
    encoded: list[str] = []
    run_jobs = encode.EncodeWorker.run

    def watched(self: encode.EncodeWorker, jobs: Iterable[encode.EncodeJob]) -> Iterator[tuple[str, Record]]:
        jobs = list(jobs)
        encoded.extend(job.id for job in jobs)
        return run_jobs(self, jobs)

    monkeypatch.setattr(encode.EncodeWorker, "run", watched)
    encode.run(smoke_config, ready, executor)
    assert read_records(ready, "latents") == whole
    assert encoded == ["shard-00000.parquet", "shard-00002.parquet"]


@pytest.mark.parametrize("averaged", [1, 3])
def test_average_of_the_last_means_is_validated_and_kept(
    begun: LocalStore, executor: InProcessExecutor, averaged: int
) -> None:
    few = {"evolve.generations": 5, "evolve.validate_every": 5, "evolve.keep_checkpoints": 10}
    config = counting_config({**few, "evolve.average_means": averaged})
    run_stages(config, begun, executor, STAGES[:5])
    checkpoints = Checkpoints(begun, "evolution")
    means = [np.load(io.BytesIO(checkpoints.read(name)))["mean"] for name in checkpoints.names()]
    assert len(means) == 5
    expected = np.average(np.stack(means[-averaged:]), axis=0).astype(np.float32)
    (controllers,) = [r for name, r in read_records(begun, "evolution").items() if name.startswith("controllers")]
    kept = load(read_verified(begun, controllers))
    np.testing.assert_allclose(kept["best"], expected, rtol=1e-6)
    np.testing.assert_array_equal(kept["mean"], means[-1].astype(np.float32))
    assert (averaged == 1) == np.array_equal(kept["best"], kept["mean"])

    # The validation ran exactly the kept controller.
    weights = [read_verified(begun, require_manifest(begun, s).records[f"{s}.safetensors"]) for s in ("vae", "mdnrnn")]
    jobs = scored_jobs(
        config.seed, purpose="validate", generation=5, candidate=0, parameters=kept["best"],
        first_track=config.tracks.validation.start, episodes=range(config.evolve.validation_episodes),
        max_steps=config.env.max_episode_steps,
    )  # fmt: skip
    with open_rollout_pool(executor, config.env, config.agent, *weights) as pool:
        results = run_episodes(pool, jobs, lambda job, result: None, require_finite=False)
    validated = controllers.info["best_validation"]
    assert np.mean([results[job.id].episode_return for job in jobs]) == pytest.approx(validated, rel=1e-12)


def test_scheduled_step_size_applies_from_its_generation_on(
    begun: LocalStore, trained: Path, tmp_path: Path, executor: InProcessExecutor
) -> None:
    def evolved(in_store: Store, generations: int) -> tuple[list[Any], list[float], bytes]:
        later = [{"generation": 3, "sigma": 1e-3}, {"generation": 9, "sigma": 7.0}]
        config = counting_config(
            {"evolve.generations": generations, "evolve.sigma_from": later, "evolve.keep_checkpoints": 9}
        )
        run_stages(config, in_store, executor, STAGES[:5])
        checkpoints = Checkpoints(in_store, "evolution")
        read = [np.load(io.BytesIO(checkpoints.read(name))) for name in checkpoints.names()]
        return [each["mean"] for each in read], [float(each["sigma"]) for each in read], read[-1]["C"].tobytes()

    means, sigmas, covariance = evolved(begun, 4)
    moved = [np.abs(after - before).max() for before, after in pairwise(means)]
    assert moved[0] > 0.02 and max(moved[1:]) < 0.01
    assert sigmas[1] > 0.05 and max(sigmas[2:]) < 0.005

    again = LocalStore(shutil.copytree(trained, tmp_path / "again"))
    evolved(again, 2)
    resumed_means, resumed_sigmas, resumed_covariance = evolved(again, 4)
    np.testing.assert_array_equal(resumed_means, means)
    assert (resumed_sigmas, resumed_covariance) == (sigmas, covariance)


def test_repeated_validation_runs_the_longest_tracks_first(
    begun: LocalStore, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = counting_config({"evolve.generations": 2, "evolve.validate_every": 1, "evolve.validation_episodes": 8})
    validated: list[list[int]] = []

    def note(pool: Any, jobs: Sequence[RolloutJob], on_result: Any, *, require_finite: bool) -> Any:
        if jobs[0].purpose == "validate":
            validated.append([job.track for job in jobs])
        return run_episodes(pool, jobs, on_result, require_finite=require_finite)

    monkeypatch.setattr(evolve, "run_episodes", note)
    run_stages(config, begun, executor, STAGES[:5])
    first, again = validated
    lengths = [episode_length(track, config.env.max_episode_steps) for track in again]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 2
    assert first == sorted(again) != again


def test_summary_has_mean_sample_deviation_and_confidence_interval() -> None:
    returns = np.random.default_rng(0).normal(800, 50, 400)
    summary = summarise(returns.tolist(), seed=1)
    assert summary["mean"] == pytest.approx(returns.mean())
    assert summary["sd"] == pytest.approx(np.sqrt(((returns - returns.mean()) ** 2).sum() / 399))
    error = returns.std(ddof=1) / 20
    assert summary["low"] == pytest.approx(returns.mean() - 1.96 * error, abs=0.15 * error)
    assert summary["high"] == pytest.approx(returns.mean() + 1.96 * error, abs=0.15 * error)
    assert (summary["episodes"], summary["min"], summary["max"]) == (400, returns.min(), returns.max())
    assert summarise(returns.tolist(), seed=1) == summary


def test_summary_of_one_episode_has_no_deviation() -> None:
    summary = summarise([5.0], seed=1)
    assert (summary["mean"], summary["sd"], summary["low"], summary["high"]) == (5.0, 0.0, 5.0, 5.0)


def test_achieved_score_of_several_episodes_has_an_interval(local_store: LocalStore) -> None:
    controllers = {"mean": summarise([5.0], seed=1), "best": summarise([4.0, 8.0], seed=1)}
    local_store.write("config.yaml", dump(counting_config()).encode())
    seal(local_store, "evaluation", Manifest("evaluate", {}, {}, {}, {}, {"controllers": controllers}))
    assert summarise_scores(local_store).splitlines() == [
        "CMA mean: return 5.0 on one test track, too few for a score",
        "best on validation: return 6.0 +- 2.8 (95 % interval 4.0 to 8.0) on 2 test tracks, none used for selection",
    ]


@pytest.mark.parametrize(
    ("wanted", "same", "validated", "evaluated"),
    [
        ("both", False, 5, ["mean", "best"]),
        ("both", True, 7, ["mean"]),
        ("both", True, None, ["mean"]),
        ("best", True, 7, ["best"]),
        ("best", False, 5, ["best"]),
        ("best", True, None, ["mean"]),
        ("mean", False, 5, ["mean"]),
    ],
)
def test_requested_controllers_are_evaluated(
    store: Store, wanted: str, same: bool, validated: int | None, evaluated: list[str]
) -> None:
    mean = np.zeros(3, np.float32)
    best = mean if same else mean + 1
    commit(
        store, "evolution", "controllers-000007.safetensors", save({"mean": mean, "best": best}),
        generation=7, best_generation=validated,
    )  # fmt: skip
    seal_current_data(store, "evolution")
    config = counting_config({"evaluate.controllers": wanted})
    found, generation = evaluate.chosen_controllers(config, store, "evolution")
    assert list(found) == evaluated
    assert generation == 7
    if "best" in found:
        np.testing.assert_array_equal(found["best"], best)


def test_shown_episode_is_the_median_one_not_the_best() -> None:
    config = counting_config({"evaluate.film_seconds": 0.1})
    jobs = evaluate.jobs_of(config, config.seed, "", np.zeros(3, np.float32))
    shown = evaluate.film_job(config, jobs, [5.0, 1.0, 9.0, 3.0])
    assert shown.track == jobs[0].track
    assert shown.max_steps == 5
    assert evaluate.film_job(config, jobs[:3], [5.0, 1.0, 9.0]).track == jobs[0].track
