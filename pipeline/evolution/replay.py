"""Prioritised level replay (Jiang et al. 2021): repeat hard tracks, scored by the population's mean return.

With new tracks only, a hard track is seen once and then lost. When it is repeated, selection can favour the candidates
that manage it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.base import seeding
from pipeline.config.evolution import EvolveConfig
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult


@dataclass(frozen=True)
class PlayedTrack:
    """Score of the population on a track.

    Attributes:
        track: Track seed.
        generation: Generation that last used the track.
        mean_return: Mean return over the candidates of that generation.
    """

    track: int
    generation: int
    mean_return: float


def replayed_tracks(config: EvolveConfig, seed: int, generation: int, played: Iterable[PlayedTrack]) -> list[int]:
    """Draw the tracks that a generation repeats: at most ``evolve.replayed_tracks``, all different.

    Tracks are drawn from the last ``evolve.replay_window`` generations. A track's probability is proportional to the
    inverse of its rank, where the lowest return has rank 1 (eq. 2 of the paper, at a temperature of 1).
    """
    recent = [track for track in played if track.generation >= generation - config.replay_window]
    hardest_first = sorted(recent, key=lambda track: (track.mean_return, track.track))
    count = min(config.replayed_tracks, len(hardest_first))
    if not count:
        return []
    chance = 1 / np.arange(1, len(hardest_first) + 1)
    rng = seeding.generator(seed, "evolve/replay", generation)
    drawn = rng.choice(len(hardest_first), count, replace=False, p=chance / chance.sum())
    return [hardest_first[index].track for index in drawn]


def remember(
    config: EvolveConfig,
    played: Iterable[PlayedTrack],
    jobs: Iterable[RolloutJob],
    results: Mapping[JobId, RolloutResult],
) -> list[PlayedTrack]:
    """Update the track scores after a generation, sorted by track; scores outside the window are dropped.

    Non-finite returns are ignored.

    Args:
        config: Section ``evolve`` of the run.
        played: Track scores before the generation.
        jobs: Jobs of the generation.
        results: Results by job ID.
    """
    if not config.replayed_tracks:
        return []
    returns: dict[int, list[float]] = {}
    generation = 0
    for job in jobs:
        generation = job.generation
        episode_return = results[job.id].episode_return
        if math.isfinite(episode_return):
            returns.setdefault(job.track, []).append(episode_return)
    known = {track.track: track for track in played if track.generation > generation - config.replay_window}
    known.update(
        (track, PlayedTrack(track, generation, math.fsum(values) / len(values))) for track, values in returns.items()
    )
    return [known[track] for track in sorted(known)]
