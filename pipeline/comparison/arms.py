"""The runs of a comparison, grouped into arms: runs of one config that differ in their seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, StorageError
from pipeline.config.identity import flatten
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION, HISTORY, TEST_EPISODES, newest_record
from pipeline.data.rounds import latest_round
from pipeline.evolution.state import Generation
from pipeline.reporting.findings import read_test_returns
from pipeline.stages.table import cost_of_run
from pipeline.storage.manifest import read_manifest, read_verified
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store

_NAMED_KEYS = 3  # arms that differ in more keys are named by their runs


@dataclass(frozen=True)
class RunResult:
    """Result of one run.

    Attributes:
        location: Location of the run.
        config: Config of the run.
        controller: Compared controller: ``"best"``, which validation chose, or else ``"mean"``; ``"agent"`` of others.
        returns: Returns of the controller on the test tracks, in their order, (T,) float64.
        history: Generations of the evolution of the last round; empty for an external agent.
        env_steps: Environment steps of all stages.
        seconds: Time of all stages in seconds.
    """

    location: str
    config: RunConfig
    controller: str
    returns: NDArray[np.float64]
    history: list[Generation]
    env_steps: int
    seconds: float


@dataclass(frozen=True)
class Arm:
    """Runs of one config that differ in their seed, in ascending order of it.

    Attributes:
        name: Name of the arm.
        runs: Runs, at least one.
    """

    name: str
    runs: list[RunResult]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run.config.seed for run in self.runs]

    def returns(self, tracks: int) -> NDArray[np.float64]:
        """Returns on the first test tracks, (S, tracks): a row for each seed."""
        return np.stack([run.returns[:tracks] for run in self.runs])


def read_result(store: Store) -> RunResult:
    """Read the result of a run.

    Raises:
        StorageError: The run has no evaluation yet.
        DamagedDataError: Committed data is missing or changed.
    """
    config = saved_config(store)
    last = latest_round(config.rounds, store, EVALUATION)
    evaluation = read_manifest(store, last.folder(EVALUATION))
    evolution = read_manifest(store, last.folder(EVOLUTION))
    external = config.evaluate.agent is not None
    if evaluation is None or (evolution is None and not external):
        raise StorageError(
            f"{store.locate()} has no scores yet: it is not evaluated. Finish it: world-models resume {store.locate()}"
        )
    scores = read_test_returns(store, newest_record(store, last.folder(EVALUATION), TEST_EPISODES))
    history = []
    if not external:
        rows = json.loads(read_verified(store, newest_record(store, last.folder(EVOLUTION), HISTORY)))
        history = [Generation(**row) for row in rows]
    controller = min(scores)  # "best" before "mean"
    cost = cost_of_run(config, store)
    return RunResult(
        location=store.locate(),
        config=config,
        controller=controller,
        returns=np.array(scores[controller], np.float64),
        history=history,
        env_steps=int(cost["env_steps"]),
        seconds=cost["seconds"],
    )


def group(results: Sequence[RunResult]) -> list[Arm]:
    """Group runs into arms by their configs, and name the arms by the keys in which they differ.

    Args:
        results: Results of runs, at least one. The order of the arms is that of their first runs.

    Raises:
        ConfigError: The runs were not tested on the same tracks of the same environment, or two of them are equal.
    """
    check_comparable(results)
    by_config: list[tuple[dict[str, Any], list[RunResult]]] = []
    for result in results:
        keys = {**flatten(result.config, "identity"), **flatten(result.config, "growable")}
        del keys["seed"]
        known = next((runs for other, runs in by_config if other == keys), None)
        if known is None:
            by_config.append((keys, [result]))
        else:
            known.append(result)
    names = _names([keys for keys, _ in by_config], [runs[0] for _, runs in by_config])
    arms = []
    for name, (_, runs) in zip(names, by_config, strict=True):
        runs.sort(key=lambda run: run.config.seed)
        for run, other in pairwise(runs):
            if run.config.seed == other.config.seed:
                raise ConfigError(
                    f"{run.location} and {other.location} have the same config and the same seed: name one of them"
                )
        arms.append(Arm(name, runs))
    return arms


def check_comparable(results: Sequence[RunResult]) -> None:
    """Check that runs were tested on the same tracks of the same environment.

    Raises:
        ConfigError: They were not; the message names two runs and the key.
    """
    first = results[0]
    for other in results[1:]:
        for key, ours, theirs in (
            ("env.id", first.config.env.id, other.config.env.id),
            ("tracks.test.start", first.config.tracks.test.start, other.config.tracks.test.start),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"{first.location} and {other.location} were not tested on the same tracks: {key} is {ours!r} and "
                    f"{theirs!r}"
                )


def _names(configs: Sequence[Mapping[str, Any]], runs: Sequence[RunResult]) -> list[str]:
    """Names of arms: the values of the keys in which they differ; or else their agents or runs, made unique."""
    differing = sorted(key for key in configs[0] if any(other[key] != configs[0][key] for other in configs))
    if 0 < len(differing) <= _NAMED_KEYS and "evaluate.agent" not in differing:
        return [", ".join(f"{key}={config[key]}" for key in differing) for config in configs]
    names = [run.config.evaluate.agent or run.config.name for run in runs]
    if len(set(names)) < len(names):
        return [run.location for run in runs]
    return names
