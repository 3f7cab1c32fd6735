"""Random streams of a run, each derived from (run seed, purpose, indices).

Streams are named and never shared: draws in one part of the run cannot shift those of another.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np


class TrackRange(Protocol):
    """Range of track seeds.

    Attributes:
        start: First seed.
        size: Number of seeds.
    """

    @property
    def start(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102


def derive(seed: int, purpose: str, *indices: int) -> int:
    """Derive a 63-bit seed for one stream.

    Args:
        seed: Seed of the run.
        purpose: Purpose of the stream, for example ``"evolve/tracks"``.
        *indices: Generation, candidate, episode, step and so on, in a fixed order for each purpose.
    """
    text = f"{seed}/{purpose}/" + "/".join(str(int(index)) for index in indices)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Make a NumPy PCG64 generator from a derived seed."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, *indices)))


def track(seed: int, tracks: TrackRange, purpose: str, *indices: int) -> int:
    """Draw a track seed from a range.

    Args:
        seed: Seed of the run.
        tracks: Range of track seeds.
        purpose: Purpose of the random stream.
        *indices: Indices of the random stream.
    """
    return tracks.start + derive(seed, purpose, *indices) % tracks.size
