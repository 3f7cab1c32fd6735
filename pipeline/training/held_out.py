"""Episodes that V and M are not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.base.seeding import generator
from pipeline.config.schema import RunConfig
from pipeline.data.rounds import Round, episodes_of

# Purposes of the random streams that draw the held-out episodes.
HELD_OUT_OF_V, HELD_OUT_OF_M = "vae/held-out", "mdnrnn/held-out"


def held_out_of_round(config: RunConfig, at: Round, fraction: float, purpose: str) -> list[int]:
    """Draw the held-out episodes of a round, in the order of drawing.

    Args:
        config: Config of the run.
        at: Round.
        fraction: Fraction to hold out.
        purpose: Purpose of the random stream.
    """
    return draw_held_out(episodes_of(config, at), fraction, config.seed, purpose, *at.seed_indices())


def held_out_so_far(config: RunConfig, at: Round, fraction: float, purpose: str) -> list[int]:
    """Held-out episodes of all rounds up to this one; the latest round's first.

    Args:
        config: Config of the run.
        at: Round, the last one.
        fraction: Fraction to hold out.
        purpose: Purpose of the random stream.
    """
    return [e for each in reversed(at.so_far) for e in held_out_of_round(config, each, fraction, purpose)]


def draw_held_out(episodes: Sequence[int], fraction: float, seed: int, purpose: str, *indices: int) -> list[int]:
    """Draw the episodes to hold out from training, in the order of drawing.

    Args:
        episodes: IDs of the episodes, in any order.
        fraction: Fraction to hold out.
        seed: Seed of the run.
        purpose: Purpose of the random stream.
        *indices: Indices of the random stream.
    """
    count = round(len(episodes) * fraction)
    order = generator(seed, purpose, *indices).permutation(len(episodes))
    return [int(np.sort(np.asarray(episodes))[index]) for index in order[:count]]
