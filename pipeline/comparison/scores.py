"""Scores of arms on the same test tracks: means, differences and tails, with intervals over seeds and tracks."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.base.formatting import number
from pipeline.base.statistics import Estimate, estimate, estimate_difference
from pipeline.comparison.arms import Arm
from pipeline.reporting.published import PUBLISHED, PublishedScore

_BOOTSTRAP_SEED = 1


@dataclass(frozen=True)
class ArmScore:
    """Score of an arm.

    Attributes:
        name: Name of the arm.
        seeds: Seeds of its runs.
        score: Mean return over seeds and tracks.
        sd: Standard deviation of all its returns.
        seed_means: Mean return of each seed.
        difference: The arm minus the first arm, paired by track, and by seed if both have the same seeds; None in the
            first arm.
        worst: Lowest return.
        tenth: Tenth percentile of the returns.
        below: Share of the returns below the threshold.
        env_steps: Environment steps of all stages, mean over the runs.
        seconds: Time of all stages in seconds, mean over the runs.
    """

    name: str
    seeds: list[int]
    score: Estimate
    sd: float
    seed_means: list[float]
    difference: Estimate | None
    worst: float
    tenth: float
    below: float
    env_steps: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        environment: ID of the environment.
        first_track: First test track.
        tracks: Number of test tracks, the same for all runs.
        threshold: Return below which an episode counts as failed.
        arms: Arms in order.
        scores: Score of each arm.
        published: Published scores on the environment.
    """

    environment: str
    first_track: int
    tracks: int
    threshold: float
    arms: Sequence[Arm]
    scores: list[ArmScore]
    published: Sequence[PublishedScore]


def compare(arms: Sequence[Arm], threshold: float) -> Comparison:
    """Compare arms on the test tracks that all of their runs have.

    Args:
        arms: Arms; differences are from the first.
        threshold: Return below which an episode counts as failed.
    """
    tracks = min(len(run.returns) for arm in arms for run in arm.runs)
    config = arms[0].runs[0].config
    published = PUBLISHED.get(config.env.id)
    return Comparison(
        environment=config.env.id,
        first_track=config.tracks.test.start,
        tracks=tracks,
        threshold=threshold,
        arms=arms,
        scores=[_score(arm, arms[0], tracks, threshold) for arm in arms],
        published=published.scores if published is not None else (),
    )


def _score(arm: Arm, first: Arm, tracks: int, threshold: float) -> ArmScore:
    returns, theirs = arm.returns(tracks), first.returns(tracks)
    difference = None
    if arm is not first and arm.seeds == first.seeds:
        difference = estimate(returns - theirs, _BOOTSTRAP_SEED)
    elif arm is not first:
        difference = estimate_difference(returns, theirs, _BOOTSTRAP_SEED)
    return ArmScore(
        name=arm.name,
        seeds=arm.seeds,
        score=estimate(returns, _BOOTSTRAP_SEED),
        sd=float(returns.std(ddof=1)) if returns.size > 1 else 0.0,
        seed_means=[float(mean) for mean in returns.mean(axis=1)],
        difference=difference,
        worst=float(returns.min()),
        tenth=float(np.percentile(returns, 10)),
        below=float(np.mean(returns < threshold)),
        env_steps=float(np.mean([run.env_steps for run in arm.runs])),
        seconds=float(np.mean([run.seconds for run in arm.runs])),
    )


def verdict(score: ArmScore, first: str) -> str:
    """Sentence on an arm's difference from the first arm."""
    found = score.difference
    assert found is not None, "the first arm has no difference"
    interval = f"{_signed(found.mean)} (95 % interval {_signed(found.low)} to {_signed(found.high)}, over"
    if found.seeds == 1:
        return f"One seed cannot tell {score.name} from {first}: {interval} its tracks alone)."
    said = f"No difference is shown between {score.name} and {first}"
    if found.low > 0 or found.high < 0:
        said = f"{score.name} scores {'more' if found.low > 0 else 'less'} than {first}"
    return f"{said}: {interval} seeds and tracks)."


def table(found: Comparison) -> list[str]:
    """Write the comparison in Markdown, with a sentence on each arm below."""
    below = f"below {number(found.threshold)}"
    others = " arms; published scores may be on others" if found.published else ""
    lines = [
        f"Returns on {found.tracks:,} test tracks of {found.environment}, {found.first_track:,} to "
        f"{found.first_track + found.tracks - 1:,}, the same for all{others}:",
        "",
        f"| arm | seeds | return | 95 % interval | minus {found.scores[0].name} | 95 % interval | better | worst | "
        f"10 % | {below} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found.scores:
        more = ["–", "–", "–"]
        if row.difference is not None:
            more = [
                _signed(row.difference.mean),
                f"{_signed(row.difference.low)} to {_signed(row.difference.high)}",
                f"{row.difference.above_zero:.0%}" if row.difference.seeds > 1 else "–",
            ]
        cells = [
            row.name, str(len(row.seeds)), f"{row.score.mean:,.1f} ± {row.sd:,.1f}",
            f"{row.score.low:,.1f} to {row.score.high:,.1f}", *more,
            f"{row.worst:,.1f}", f"{row.tenth:,.1f}", f"{row.below:.1%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for published in found.published:
        cells = [f"{published.name} ({published.source.text})", "", f"{published.mean:,.0f} ± {published.sd:,.0f}"]
        lines.append(f"| {' | '.join([*cells, *[''] * 7])} |")
    lines += ["", *(verdict(row, found.scores[0].name) for row in found.scores[1:])]
    if any(len(row.seeds) == 1 for row in found.scores):
        lines.append("Intervals of arms with one seed cover the tracks alone. At least three seeds are advisable.")
    return lines


def _signed(value: float) -> str:
    text = f"{value:+,.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def to_json(found: Comparison) -> dict[str, Any]:
    """Convert a comparison to JSON values, with the returns and the learning curve of each run."""
    return {
        "environment": found.environment,
        "first_track": found.first_track,
        "tracks": found.tracks,
        "threshold": found.threshold,
        "arms": [
            {
                **asdict(score),
                "runs": [
                    {
                        "location": run.location,
                        "seed": run.config.seed,
                        "controller": run.controller,
                        "returns": run.returns[: found.tracks].tolist(),
                        "env_steps": run.env_steps,
                        "seconds": run.seconds,
                        "history": [asdict(row) for row in run.history],
                    }
                    for run in arm.runs
                ],
            }
            for arm, score in zip(found.arms, found.scores, strict=True)
        ],
        "published": [asdict(score) for score in found.published],
    }


def to_csv(found: Comparison) -> str:
    """Write a comparison as CSV: a row for each test episode."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["arm", "seed", "run", "controller", "track", "episode_return"])
    for arm in found.arms:
        for run in arm.runs:
            for index, value in enumerate(run.returns[: found.tracks]):
                row = [arm.name, run.config.seed, run.location, run.controller, found.first_track + index, value]
                writer.writerow(row)
    return buffer.getvalue()
