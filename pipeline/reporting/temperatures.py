"""The table of temperatures: returns in the dream and in the game (World Models, section 4.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.artifacts import EVALUATION, EVOLUTION, HISTORY, MDNRNN, newest_record
from pipeline.data.quality import held_out_quality
from pipeline.data.rounds import Round
from pipeline.storage.manifest import read_verified, require_manifest
from pipeline.storage.store import Store


@dataclass(frozen=True)
class TemperatureRow:
    """A controller that was evolved in dreams at one temperature, and chosen by dreams; or both in the game.

    Attributes:
        temperature: Temperature of its dreams; None if it was evolved in the game.
        generation: Generation that was chosen.
        dream_mean, dream_sd: Returns of its validation dreams at this temperature; None without dreams.
        end_recall, end_precision: Share of the ends that M predicts on held-out episodes, and share of the predicted
            ends that are true; None if they are unknown.
        episodes: Number of test episodes in the environment.
        mean, sd: Mean and standard deviation of their returns.
        low, high: 95 % bootstrap interval of the mean.
    """

    temperature: float | None
    generation: int
    dream_mean: float | None
    dream_sd: float | None
    end_recall: float | None
    end_precision: float | None
    episodes: int
    mean: float
    sd: float
    low: float
    high: float


def read_row(store: Store, at: Round, temperature: float | None, end_probability: float) -> TemperatureRow:
    """Read the row of a branch.

    Args:
        store: Store of the run.
        at: The branch.
        temperature: Temperature of its dreams; None if it was evolved in the game.
        end_probability: Probability above which its dreams end.

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
    quality = held_out_quality(require_manifest(store, at.folder(MDNRNN)).info, end_probability)
    return TemperatureRow(
        temperature=temperature,
        generation=chosen,
        dream_mean=history[chosen]["dream_mean"],
        dream_sd=history[chosen]["dream_sd"],
        end_recall=None if quality is None else quality.end_recall,
        end_precision=None if quality is None else quality.end_precision,
        **{name: score[name] for name in ("episodes", "mean", "sd", "low", "high")},
    )


def table(rows: Sequence[TemperatureRow]) -> list[str]:
    """Write the table in Markdown, with M's quality below it."""
    lines = [
        "| temperature | return in the dream | return in the game | 95 % interval | games | generation |",
        "|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {_dreams(row)} | {row.mean:,.0f} +- {row.sd:,.0f} "
            f"| {row.low:,.0f} to {row.high:,.0f} | {row.episodes:,} | {row.generation:,} |"
            for row in rows
        ),
        "",
    ]
    recall, precision = rows[0].end_recall, rows[0].end_precision
    if recall is None:
        lines.append("How many ends M predicts is unknown, so a return in the dream says nothing by itself.")
    else:
        of_them = "" if precision is None else f", and {precision:.0%} of the ends that it predicts are true"
        lines.append(f"On held-out episodes M predicts {recall:.0%} of the ends{of_them}.")
    lines.append(
        "Controllers were evolved and chosen in dreams alone, with the same seeds, and tested on the same games."
    )
    if rows[-1].temperature is None:
        lines.append("The last one was evolved and chosen in the game, with the same V, M and number of generations.")
    return lines


def _dreams(row: TemperatureRow) -> str:
    if row.temperature is None or row.dream_mean is None or row.dream_sd is None:
        return "none: in the game | –"
    return f"{row.temperature:g} | {row.dream_mean:,.0f} +- {row.dream_sd:,.0f}"


def to_json(rows: Sequence[TemperatureRow]) -> list[dict[str, Any]]:
    """Convert the rows to JSON values."""
    return [asdict(row) for row in rows]
