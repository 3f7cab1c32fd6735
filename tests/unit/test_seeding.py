"""Named random streams: all differ, and each one is reproducible."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.seeding import derive, generator, track
from pipeline.config.schema import SeedRange

# printf '1/evolve/track/3/4' | sha256sum | cut -c1-16, as a number, halved
KNOWN = 0x9C4C3DA9976581E4 >> 1


def test_seed_equals_the_output_of_sha256sum() -> None:
    assert derive(1, "evolve/track", 3, 4) == KNOWN


def test_seed_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "from pipeline.base.seeding import derive; print(derive(1, 'evolve/track', 3, 4))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == KNOWN


def test_streams_differ_by_seed_purpose_and_ordered_indices() -> None:
    streams: list[tuple[Any, ...]] = [
        (1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, "a", 0, 0), (1, "a", 0, 1), (1, "a", 1, 0),
        (1, "a", 10), (1, "a", -1), (1, "a", 1, 1), (1, "a", 11), (11, "a"), (1, "ab"), (1, "a/b"),
    ]  # fmt: skip
    assert len({derive(*stream) for stream in streams}) == len(streams)


def test_numpy_indices_equal_plain_ones() -> None:
    assert derive(1, "a", np.int64(3)) == derive(1, "a", 3)  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**63 - 1), indices=st.lists(st.integers(-5, 10**9), max_size=3))
def test_seed_is_valid_for_numpy_and_torch(seed: int, indices: list[int]) -> None:
    assert 0 <= derive(seed, "purpose", *indices) < 2**63


def test_generator_is_pcg64_with_the_derived_seed() -> None:
    expected = np.random.Generator(np.random.PCG64(derive(5, "x", 2))).random(4)
    np.testing.assert_array_equal(generator(5, "x", 2).random(4), expected)


@given(start=st.integers(0, 2**31 - 2), size=st.integers(1, 1000), index=st.integers(0, 10**6))
def test_track_is_in_its_range(start: int, size: int, index: int) -> None:
    stop = min(start + size, 2**31)
    assert start <= track(1, SeedRange(start=start, stop=stop), "purpose", index) < stop


def test_tracks_are_uniform_over_their_range() -> None:
    drawn = np.array([track(1, SeedRange(start=100, stop=110), "purpose", i) for i in range(5000)])
    counts = np.bincount(drawn - 100, minlength=10)
    # Each of ten tracks 500 times; the standard deviation of a count is 21.
    assert len(counts) == 10
    assert np.all(np.abs(counts - 500) < 110)
