"""Rounds of a run side by side, for the report: data, errors and scores of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.config.rounds import RoundsConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION, HISTORY, LATENTS, MDNRNN, ROLLOUTS, VAE
from pipeline.data.quality import Assessment, held_out_quality
from pipeline.data.rounds import FIRST, Round, rounds_of, vae_folder
from pipeline.storage.manifest import Manifest, newest, read_verified, require_manifest
from pipeline.storage.store import Store


@dataclass(frozen=True)
class RoundRow:
    """One round.

    Attributes:
        number: Number of the round.
        episodes, frames: Number of episodes and frames that it collected.
        collected_mean: Mean return of these episodes.
        reconstruction: Squared error of V's reconstructions of held-out frames of these episodes, summed over a frame;
            None if it was not measured.
        mdnrnn: Quality of M on held-out episodes of them; None if M was not trained.
        validation, dream: Mean returns of the chosen controller in its validation in the environment, and in dreams;
            None without validation, and without dreams.
        score, sd: Mean and standard deviation of the test returns of the best controller.
        test_episodes: Number of test episodes.
    """

    number: int
    episodes: int
    frames: int
    collected_mean: float
    reconstruction: float | None
    mdnrnn: Assessment | None
    validation: float | None
    dream: float | None
    score: float
    sd: float
    test_episodes: int


def folders_of(rounds: RoundsConfig, at: Round) -> dict[str, str]:
    """Folders of the stages that a round uses, by the names that they have in the first round."""
    folders = {name: at.folder(name) for name in (ROLLOUTS, VAE, LATENTS, MDNRNN, EVOLUTION, EVALUATION)}
    return {**folders, VAE: vae_folder(rounds, at)}


def all_manifests(rounds: RoundsConfig, store: Store) -> dict[str, Manifest]:
    """Manifests of all stages but the report, by folder, in the order in which they ran.

    Raises:
        StorageError: A stage is not complete.
    """
    folders = [folder for at in rounds_of(rounds) for folder in folders_of(rounds, at).values()]
    return {folder: require_manifest(store, folder) for folder in dict.fromkeys(folders)}


def round_rows(
    config: RunConfig, store: Store, manifests: dict[str, Manifest], first_reconstruction: float | None
) -> list[RoundRow]:
    """Rows of all rounds; none if there is only one.

    Args:
        config: Config of the run.
        store: Store of the run.
        manifests: Manifests by folder.
        first_reconstruction: Error of V's reconstructions in the first round.
    """
    if config.rounds.count == 1:
        return []
    rows = []
    for at in rounds_of(config.rounds):
        of_round = {name: manifests[folder] for name, folder in folders_of(config.rounds, at).items()}
        records = of_round[ROLLOUTS].records.values()
        returns = [float(value) for record in records for value in record.info["returns"]]
        chosen = _chosen(store, of_round[EVOLUTION])
        scores = of_round[EVALUATION].info["controllers"]
        score = scores[min(scores)]  # "best" before "mean"
        rows.append(
            RoundRow(
                number=at.number,
                episodes=len(returns),
                frames=sum(record.rows for record in records),
                collected_mean=sum(returns) / len(returns),
                reconstruction=first_reconstruction if at == FIRST else of_round[LATENTS].info.get("reconstruction"),
                mdnrnn=held_out_quality(of_round[MDNRNN].info, config.dream.end_probability),
                validation=chosen.get("validation_mean"),
                dream=chosen.get("dream_mean"),
                score=score["mean"],
                sd=score["sd"],
                test_episodes=score["episodes"],
            )
        )
    return rows


def _chosen(store: Store, evolution: Manifest) -> dict[str, Any]:
    """Row of the history of the generation that was chosen; empty without validation."""
    record = newest(evolution.records, HISTORY)
    history = [] if record is None else json.loads(read_verified(store, record))
    return next((row for row in history if row["generation"] == evolution.info.get("best_generation")), {})
