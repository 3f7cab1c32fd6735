"""Hard tracks again: prioritised level replay (Jiang et al. 2021), a track's score being the population's return.

On new tracks alone, one that most candidates fail on comes by once in a while and is gone again; met several times, it
tells those that manage it from those that do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.base import seeding
from pipeline.config.schema import RunConfig
from pipeline.evolution.fitness import JobId
from pipeline.rollouts.loop import RolloutJob, RolloutResult


@dataclass(frozen=True)
class DrivenTrack:
    """How a population did on a track.

    Attributes:
        track: seed of the track.
        generation: when it was driven last.
        mean_return: over the candidates, then.
    """

    track: int
    generation: int
    mean_return: float


def replayed_tracks(config: RunConfig, generation: int, driven: Iterable[DrivenTrack]) -> list[int]:
    """The tracks that a generation drives again, ``evolve.replayed_tracks`` at most, no two the same.

    Drawn from those of the last ``evolve.replay_window`` generations; a track's chance falls with the inverse of its
    rank, the one with the lowest return being first (eq. 2 of the paper, at a temperature of 1).
    """
    recent = [track for track in driven if track.generation >= generation - config.evolve.replay_window]
    hardest_first = sorted(recent, key=lambda track: (track.mean_return, track.track))
    count = min(config.evolve.replayed_tracks, len(hardest_first))
    if not count:
        return []
    chance = 1 / np.arange(1, len(hardest_first) + 1)
    rng = seeding.generator(config.seed, "evolve/replay", generation)
    drawn = rng.choice(len(hardest_first), count, replace=False, p=chance / chance.sum())
    return [hardest_first[index].track for index in drawn]


def remember(
    config: RunConfig,
    driven: Iterable[DrivenTrack],
    jobs: Iterable[RolloutJob],
    results: Mapping[JobId, RolloutResult],
) -> list[DrivenTrack]:
    """What is known of the tracks after a generation, by track; those beyond the window are forgotten.

    A return that is not finite says nothing of its track.
    """
    if not config.evolve.replayed_tracks:
        return []
    returns: dict[int, list[float]] = {}
    generation = 0
    for job in jobs:
        generation = job.generation
        episode_return = results[job.id].episode_return
        if math.isfinite(episode_return):
            returns.setdefault(job.track, []).append(episode_return)
    known = {track.track: track for track in driven if track.generation > generation - config.evolve.replay_window}
    known.update(
        (track, DrivenTrack(track, generation, math.fsum(values) / len(values))) for track, values in returns.items()
    )
    return [known[track] for track in sorted(known)]
