"""Published metrics of stages: all episodes and frames count once, and the rest is as logged."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, get_args

import pytest

from pipeline.base.progress import Counted, Measured, Metrics
from pipeline.config.schema import RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.layout import manifest_key
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import newest, read_records, require_manifest
from tests.counting import counting_config

# Prefix to stage, for the stages that run episodes.
RUNS_EPISODES = {"rollouts": "collect", "evolution": "evolve", "evaluation": "evaluate"}


class Watched(InProcessExecutor):
    """Adds up counters and keeps gauges, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(int))
        self.measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def publish(self, stage: str, metrics: Metrics) -> None:
        for name, value in metrics.items():
            assert type(value) in (int, float), f"{name} of {stage} is {value!r}, which Ray's metrics refuse"
            if name in get_args(Counted):
                self.counted[stage][name] += value
            else:
                self.measured[stage][name].append(value)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def logged(store: LocalStore, prefix: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(f"{prefix}/metrics.jsonl").splitlines()]


def test_run_publishes_all_its_metrics(watched: Watched, local_store: LocalStore) -> None:
    config = counting_config({"vae.log_every_steps": 1, "mdnrnn.log_every_steps": 1})
    run_stages(config, local_store, watched, STAGES)

    steps = {stage: require_manifest(local_store, stage).info["env_steps"] for stage in RUNS_EPISODES}
    evolve = config.evolve
    validated = evolve.generations // evolve.validate_every * evolve.validation_episodes
    evaluated = newest(read_records(local_store, "evaluation"), "episodes-")
    assert evaluated is not None
    episodes = {
        "rollouts": config.collect.episodes,
        "evolution": evolve.generations * evolve.population_size * evolve.episodes + validated,
        "evaluation": evaluated.rows,
    }
    assert {prefix: watched.counted[stage] for prefix, stage in RUNS_EPISODES.items()} == {
        prefix: {"episodes": episodes[prefix], "env_steps": steps[prefix]} for prefix in RUNS_EPISODES
    }
    assert watched.counted["encode"] == {"encoded_frames": steps["rollouts"]}

    for stage, prefix, names in (
        ("evolve", "evolution", ("fitness_mean", "fitness_max", "sigma", "validation_mean")),
        ("train-vae", "vae", ("loss", "held_out_loss")),
        ("train-mdnrnn", "mdnrnn", ("loss", "held_out_loss")),
    ):
        for name in names:
            values = [row[name] for row in logged(local_store, prefix) if row.get(name) is not None]
            assert watched.measured[stage][name] == values != [], f"{name} of {stage}"
    assert watched.measured["evolve"]["generation"] == [*range(1, evolve.generations + 1)]

    stages = {stage.name for stage in STAGES} - {"report"}
    assert watched.measured.keys() == stages
    for stage in stages:
        progress = watched.measured[stage]["progress_ratio"]
        assert progress == sorted(progress), stage
        assert progress[-1] == 1
    for published, kinds in ((watched.counted, Counted), (watched.measured, Measured)):
        assert {name for metrics in published.values() for name in metrics} == set(get_args(kinds))


def test_resumed_run_counts_only_new_work(watched: Watched, local_store: LocalStore, smoke_config: RunConfig) -> None:
    run_stages(smoke_config, local_store, InProcessExecutor(), STAGES[:1])
    first = next(iter(read_records(local_store, "rollouts").values()))
    local_store.delete(manifest_key("rollouts"))
    local_store.delete(f"rollouts/records/{first.name}.json")
    run_stages(smoke_config, local_store, watched, STAGES[:1])
    assert watched.counted["collect"] == {"episodes": len(first.info["episodes"]), "env_steps": first.rows}
