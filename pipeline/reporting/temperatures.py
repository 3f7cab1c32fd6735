"""The table of temperatures: returns in the dream and in the game (World Models, section 4.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.artifacts import EVALUATION, EVOLUTION, HISTORY, MDNRNN, newest_record
from pipeline.data.rounds import Round
from pipeline.storage.manifest import read_verified, require_manifest
from pipeline.storage.store import Store


@dataclass(frozen=True)
class TemperatureRow:
    """A controller that was evolved in dreams at one temperature, and chosen by dreams.

    Attributes:
        temperature: Temperature of its dreams.
        generation: Generation that was chosen.
        dream_mean, dream_sd: Returns of its validation dreams at this temperature.
        episodes: Number of test episodes in the environment.
        mean, sd: Mean and standard deviation of their returns.
        low, high: 95 % bootstrap interval of the mean.
    """

    temperature: float
    generation: int
    dream_mean: float
    dream_sd: float
    episodes: int
    mean: float
    sd: float
    low: float
    high: float


def read_row(store: Store, at: Round, temperature: float) -> TemperatureRow:
    """Read the row of a branch.

    Raises:
        StorageError: The branch is not complete.
        DamagedDataError: Its history is missing or changed.
    """
    evolution = require_manifest(store, at.folder(EVOLUTION))
    record = newest_record(store, at.folder(EVOLUTION), HISTORY)
    chosen = evolution.info["best_generation"]
    history = {row["generation"]: row for row in json.loads(read_verified(store, record))}
    score = require_manifest(store, at.folder(EVALUATION)).info["controllers"]
    score = score[min(score)]  # "best" before "mean"
    return TemperatureRow(
        temperature=temperature,
        generation=chosen,
        dream_mean=history[chosen]["dream_mean"],
        dream_sd=history[chosen]["dream_sd"],
        **{name: score[name] for name in ("episodes", "mean", "sd", "low", "high")},
    )


def table(rows: Sequence[TemperatureRow], store: Store, at: Round) -> list[str]:
    """Write the table in Markdown, with M's quality below it."""
    lines = [
        "| temperature | return in the dream | return in the game | 95 % interval | games | generation |",
        "|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {row.temperature:g} | {row.dream_mean:,.0f} +- {row.dream_sd:,.0f} | {row.mean:,.0f} +- {row.sd:,.0f} "
            f"| {row.low:,.0f} to {row.high:,.0f} | {row.episodes:,} | {row.generation:,} |"
            for row in rows
        ),
        "",
    ]
    held_out = require_manifest(store, at.folder(MDNRNN)).info.get("held_out") or {}
    recall, precision = held_out.get("end_recall"), held_out.get("end_precision")
    if recall is None:
        lines.append("How many ends M predicts is unknown, so a return in the dream says nothing by itself.")
    else:
        of_them = "" if precision is None else f", and {precision:.0%} of the ends that it predicts are true"
        lines.append(f"On held-out episodes M predicts {recall:.0%} of the ends{of_them}.")
    lines.append(
        "Controllers were evolved and chosen in dreams alone, with the same seeds, and tested on the same games."
    )
    return lines


def to_json(rows: Sequence[TemperatureRow]) -> list[dict[str, Any]]:
    """Convert the rows to JSON values."""
    return [asdict(row) for row in rows]
