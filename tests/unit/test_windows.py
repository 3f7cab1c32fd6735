"""Windows of latents: the position of rows, padding, and the coverage of every row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config.presets import load_config
from pipeline.data.episodes import LatentEpisode
from pipeline.training.windows import WindowBlock, Windows, num_windows

Z, A = 3, 2
_COLUMN = np.arange(1, 4, dtype=np.float32)


def number(episode: int, row: int) -> int:
    """A number that encodes the origin of a value; never 0, which marks padding."""
    return 1000 * (episode + 1) + row


def make_episode(identity: int, steps: int, *, terminated: bool = True) -> LatentEpisode:
    numbers = np.array([number(identity, row) for row in range(steps)], np.float32)
    ends = np.arange(steps) == steps - 1
    return LatentEpisode(
        id=identity,
        track=identity,
        mu=numbers[:, None] * _COLUMN,
        logvar=-numbers[:, None] * _COLUMN,
        actions=numbers[:, None] + np.array([0.25, 0.5], np.float32),
        rewards=numbers + np.float32(0.125),
        terminated=ends & terminated,
        truncated=ends & (not terminated),
    )


def block_of(episodes: list[LatentEpisode], window: int, seed: int = 0) -> tuple[WindowBlock, Windows]:
    block = WindowBlock(episodes, window, np.random.default_rng(seed))
    return block, block.batch(np.arange(len(block)))


_LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=100)
@given(lengths=_LENGTHS, window=st.integers(1, 15), seed=st.integers(0, 1000))
def test_window_rows_belong_to_one_step_and_target_the_next_row(lengths: list[int], window: int, seed: int) -> None:
    episodes = [make_episode(i, steps) for i, steps in enumerate(lengths)]
    block, windows = block_of(episodes, window, seed)
    assert len(block) == sum(num_windows(steps, window) for steps in lengths)
    window = min(window, max(lengths))  # no batch is longer than its longest window
    assert windows.mu.shape == windows.logvar.shape == (len(block), window + 1, Z)
    assert windows.actions.shape == (len(block), window, A)
    assert {a.shape for a in windows[3:]} == {(len(block), window)}
    assert {a.dtype for a in windows} == {np.dtype(np.float32)}
    seen: set[int] = set()
    for w in range(len(block)):
        first = int(windows.mu[w, 0, 0])
        episode, start = first // 1000 - 1, first % 1000
        steps = lengths[episode]
        for t in range(window):
            row = start + t
            if row >= steps:  # padding
                assert (windows.real[w, t], windows.has_next[w, t], windows.done[w, t]) == (0, 0, 0)
                assert not windows.mu[w, t + 1].any()
                assert not windows.actions[w, t].any()
                assert windows.rewards[w, t] == 0
                continue
            value = number(episode, row)
            assert value not in seen, "no row is in two windows"
            seen.add(value)
            assert windows.real[w, t] == 1
            np.testing.assert_array_equal(windows.mu[w, t], value * _COLUMN)
            np.testing.assert_array_equal(windows.logvar[w, t], -value * _COLUMN)
            np.testing.assert_array_equal(windows.actions[w, t], [value + 0.25, value + 0.5])
            assert windows.rewards[w, t] == value + 0.125
            last = row == steps - 1
            assert windows.done[w, t] == last
            assert windows.has_next[w, t] == (not last)
            if not last:
                np.testing.assert_array_equal(windows.mu[w, t + 1], (value + 1) * _COLUMN)
                np.testing.assert_array_equal(windows.logvar[w, t + 1], -(value + 1) * _COLUMN)


@pytest.mark.parametrize(("steps", "window"), [(10, 4), (11, 4), (4, 4), (3, 4), (1, 4), (9, 1), (1000, 999)])
def test_every_row_is_reached_by_some_draw(steps: int, window: int) -> None:
    seen: set[int] = set()
    for seed in range(60):
        _, windows = block_of([make_episode(0, steps)], window, seed)
        seen |= {int(x) for x in windows.mu[:, :-1, 0][windows.real > 0]}
    assert seen == {number(0, row) for row in range(steps)}


def test_only_windows_shorter_than_the_longest_are_padded() -> None:
    _, long = block_of([make_episode(0, 23)], 5)
    assert long.real.all()
    _, short = block_of([make_episode(0, 3)], 5)
    assert short.real.tolist() == [[1, 1, 1]] and short.has_next.tolist() == [[1, 1, 0]]
    _, both = block_of([make_episode(0, 3), make_episode(1, 5)], 5)
    assert both.real.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert both.has_next.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


def take_cover_lengths(games: int) -> list[int]:
    """Lengths like those of TakeCover's collected games: 40 to 2,100 tics, 317 on average."""
    drawn = np.random.default_rng(5).gamma(3.5, 90.0, games)
    return [int(length) for length in np.clip(drawn, 40, 2100)]


def skewed_lengths(games: int) -> list[int]:
    """Lengths with more very short and very long games, 40 to 2,100."""
    drawn = np.random.default_rng(6).exponential(250, games)
    return [int(length) for length in np.clip(60 + drawn, 40, 2100)]


@pytest.mark.parametrize("preset", ["takecover-laptop", "takecover"])
@pytest.mark.parametrize("lengths", [take_cover_lengths, skewed_lengths])
def test_windows_of_many_lengths_need_little_padding(preset: str, lengths: Callable[[int], list[int]]) -> None:
    config = load_config(preset, []).mdnrnn
    window, batch_size = config.window, config.batch_size
    games = lengths(config.shuffle_frames // window)
    held = np.cumsum([num_windows(steps, window) for steps in games]) <= config.shuffle_frames // window
    block = WindowBlock(
        [make_episode(i, steps) for i, steps in enumerate(games) if held[i]], window, np.random.default_rng(1)
    )
    order = np.random.default_rng(2).permutation(len(block))
    order = order[: len(order) // batch_size * batch_size]
    arranged = block.arrange(order, batch_size)
    assert sorted(arranged) == sorted(order)

    def padded(items: NDArray[np.int64]) -> float:
        real = [block.batch(batch).real for batch in items.reshape(-1, batch_size)]
        return 1 - float(sum(part.sum() for part in real)) / sum(part.size for part in real)

    assert padded(order) > 0.3
    assert padded(arranged) < 0.15
    firsts = [block.batch(batch).real.shape[1] for batch in arranged.reshape(-1, batch_size)]
    assert firsts != sorted(firsts), "the batches come in random order"


def test_half_of_the_draws_contain_the_end_of_an_ended_game() -> None:
    for terminated, least, most in ((True, 0.4, 0.6), (False, 0.0, 0.05)):
        episodes = [make_episode(i, 700, terminated=terminated) for i in range(300)]
        _, windows = block_of(episodes, 500)
        reached = (windows.has_next == 0).any(axis=1).mean()
        assert least <= reached <= most, (terminated, reached)


def test_windows_of_one_length_stay_in_their_random_order() -> None:
    block = WindowBlock([make_episode(i, 20) for i in range(12)], 5, np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(block))
    np.testing.assert_array_equal(block.arrange(order, 8), order)


def test_done_marks_termination_and_not_truncation() -> None:
    _, windows = block_of([make_episode(0, 4, terminated=False), make_episode(1, 4, terminated=True)], 4)
    assert windows.done.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_batch_has_the_requested_items_in_order() -> None:
    block, windows = block_of([make_episode(i, 9) for i in range(3)], 4)
    picked = block.batch(np.array([5, 0, 3]))
    for field in Windows._fields:
        np.testing.assert_array_equal(getattr(picked, field), getattr(windows, field)[[5, 0, 3]])


def test_starts_depend_on_the_given_stream() -> None:
    episodes = [make_episode(i, 23) for i in range(4)]
    starts = [block_of(episodes, 5, seed)[1].mu[:, 0, 0].tolist() for seed in (1, 1, 2)]
    assert starts[0] == starts[1] != starts[2]
