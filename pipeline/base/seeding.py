"""Every random stream of a run, derived from (run seed, purpose, indices).

A stream is named, never shared: nothing that one part of the run draws can shift what another one sees.
"""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.config.schema import SeedRange


def derive(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one stream.

    Args:
        seed: the run's seed.
        purpose: what the stream is for, for example ``"evolve/tracks"``.
        indices: generation, candidate, episode, step ... in a fixed order for each purpose.
    """
    text = f"{seed}/{purpose}/" + "/".join(str(int(index)) for index in indices)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """numpy's PCG64 on a derived seed."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, *indices)))


def track(seed: int, tracks: SeedRange, purpose: str, *indices: int) -> int:
    """A track seed from a range."""
    return tracks.start + derive(seed, purpose, *indices) % tracks.size
