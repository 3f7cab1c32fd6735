"""FastCarRacing is Gymnasium's game to the bit: on created and cached tracks, with any driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d import car_racing as gymnasiums

from pipeline.envs import car_racing
from pipeline.envs.car_racing import FastCarRacing, forget_tracks
from tests.car_drivers import (
    Driver,
    GoodButtonDriver,
    GoodDriver,
    RandomDriver,
    UndrawnCarRacing,
    state,
    straight_on,
)

FAST_ID = "pipeline.envs.car_racing:WorldModels/FastCarRacing-v3"
TRACKS, BATCH, STEPS = 30, 10, 100


@pytest.fixture(autouse=True)
def empty_track_cache() -> Iterator[None]:
    forget_tracks()
    yield
    forget_tracks()


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tiles of each track that FastCarRacing lets Gymnasium create; 0 for a failure."""
    tiles: list[int] = []
    original = gymnasiums.CarRacing._create_track

    def create(self: Any) -> bool:
        success = bool(original(self))
        if isinstance(self, FastCarRacing):
            tiles.append(len(self.road))
        return success

    monkeypatch.setattr(gymnasiums.CarRacing, "_create_track", create)
    return tiles


class Pair:
    """FastCarRacing and Gymnasium's CarRacing in step; their results and states are compared.

    Args:
        options: Options of both.
    """

    def __init__(self, **options: Any) -> None:
        self.fast = FastCarRacing(view="playfield", **options)
        self.plain = UndrawnCarRacing(**options)

    def reset(self, **kwargs: Any) -> None:
        assert self.fast.reset(**kwargs)[1] == self.plain.reset(**kwargs)[1]
        assert state(self.fast) == state(self.plain)
        assert self.fast.np_random.bit_generator.state == self.plain.np_random.bit_generator.state
        for name in ("road_color", "bg_color", "grass_color"):
            np.testing.assert_array_equal(getattr(self.fast, name), getattr(self.plain, name))

    def step(self, driver: Driver) -> tuple[float, bool, dict[str, Any]]:
        action = driver(self.plain)
        _, *ours = self.fast.step(action)
        _, *expected = self.plain.step(action)
        assert ours == expected
        assert state(self.fast) == state(self.plain)
        reward, terminated, _, info = expected
        return float(reward), bool(terminated), info

    def drive(self, driver: Driver, steps: int) -> tuple[float, bool, dict[str, Any]]:
        """(return, terminated, last info) after at most ``steps`` steps."""
        total, terminated, info = 0.0, False, dict[str, Any]()
        for _ in range(steps):
            reward, terminated, info = self.step(driver)
            total += reward
            if terminated:
                break
        return total, terminated, info


def road(env: Any) -> list[Any]:
    """All data of the track that physics, rewards and drawing use."""
    tiles = [
        (tile.idx, tile.road_visited, tile.road_friction, tile.color.tolist(), tile.fixtures[0].shape.vertices,
         tile.fixtures[0].sensor, tile.userData is tile)
        for tile in env.road
    ]  # fmt: skip
    polygons = [(vertices, np.asarray(color).tolist(), type(color)) for vertices, color in env.road_poly]
    return [env.track, env.start_alpha, tiles, polygons]


@pytest.mark.parametrize("first", range(0, TRACKS, BATCH))
def test_created_and_cached_tracks_give_the_same_bits(first: int, created: list[int]) -> None:
    pair = Pair()
    tracks = range(first, first + BATCH)
    visited = []
    # In reverse order the second time: other tracks come in between, and another one just before.
    for order, offset in ((tracks, 0), (tracks[::-1], 1)):
        for track in order:
            well = (track + offset) % 2 == 1
            pair.reset(seed=track)
            pair.drive(GoodDriver() if well else RandomDriver(track), STEPS)
            if well:
                visited.append(pair.plain.tile_visited_count)
    assert sum(tiles > 0 for tiles in created) == BATCH, "none was created twice"
    assert min(visited) > 10
    assert len(visited) == BATCH


def test_cached_track_equals_the_created_one(created: list[int]) -> None:
    pair, later = Pair(), Pair()
    for track in (5, 42):
        for times, each in ((1, pair), (2, later)):
            created.clear()
            each.reset(seed=track)
            assert bool(created) == (times == 1)
            assert road(each.fast) == road(each.plain)
            each.drive(GoodDriver(), 80)
            assert road(each.fast) == road(each.plain), "visited tiles have the road's colour"


@pytest.mark.parametrize("track", [1, 6])
def test_whole_laps_end_equally(track: int) -> None:
    pair = Pair()
    for _ in range(2):
        pair.reset(seed=track)
        total, terminated, info = pair.drive(GoodDriver(), 1000)
        assert terminated
        assert info == {"lap_finished": True}
        assert pair.plain.tile_visited_count == len(pair.plain.track)
        assert total > 850


def test_leaving_the_playfield_ends_equally(created: list[int]) -> None:
    pair = Pair()
    for times in range(2):
        pair.reset(seed=11)
        pair.drive(straight_on, 186)
        assert pair.step(straight_on) == (-100, True, {"lap_finished": False})
        assert len(created) == 1, f"time {times}"


def test_two_environments_on_one_track_are_independent(created: list[int]) -> None:
    pairs = [Pair(), Pair()]
    drivers: list[Driver] = [GoodDriver(), RandomDriver(0)]
    for pair in pairs:
        pair.reset(seed=8)
    assert sum(tiles > 0 for tiles in created) == 1, "they share it"
    for step in range(150):
        for pair, driver in zip(pairs, drivers, strict=True):
            pair.step(driver)
        if step == 60:
            pairs[1].reset(seed=8)
            pairs[1].step(drivers[1])
    assert pairs[0].plain.tile_visited_count > 20
    assert state(pairs[0].fast) != state(pairs[1].fast)


def test_unseeded_resets_equal_gymnasiums(created: list[int]) -> None:
    pair = Pair()
    for _ in range(2):
        pair.reset(seed=3)
        for _ in range(3):
            pair.drive(RandomDriver(1), 10)
            pair.reset()
    assert sum(tiles > 0 for tiles in created) == 4


def test_failed_attempts_at_a_track_are_cached(created: list[int]) -> None:
    pair = Pair()
    pair.reset(seed=313)
    assert [tiles > 0 for tiles in created] == [False, False, True], "Gymnasium finds no closed loop at first"
    pair.drive(GoodDriver(), 30)
    created.clear()
    pair.reset(seed=313)
    pair.drive(GoodDriver(), 30)
    assert created == []
    assert road(pair.fast) == road(pair.plain)


def test_evicted_track_is_created_again(created: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(car_racing, "_MAX_TRACKS", 2)
    pair = Pair()
    for track in (1, 4, 1, 6, 1, 4):
        pair.reset(seed=track)
        pair.drive(GoodDriver(), 20)
    assert sum(tiles > 0 for tiles in created) == 4, "1, 4, 6 and 4 again"


def test_random_colours_are_equal_and_change_nothing_else(created: list[int]) -> None:
    pair = Pair(domain_randomize=True)
    colors = []
    for _ in range(2):
        for kwargs in ({"seed": 5}, {"options": {"randomize": False}}, {}, {"seed": 9, "options": {"randomize": True}}):
            pair.reset(**kwargs)
            assert road(pair.fast) == road(pair.plain)
            colors.append(pair.plain.road_color.tolist())
            pair.drive(GoodDriver(), 40)
            assert road(pair.fast) == road(pair.plain)
    assert sum(tiles > 0 for tiles in created) == 4
    assert colors[0] == colors[1], "kept"
    assert len({tuple(color) for color in colors}) == 3


@pytest.mark.parametrize("driver", [RandomDriver(3, buttons=True), GoodButtonDriver()])
def test_discrete_actions_give_equal_episodes(driver: Driver) -> None:
    pair = Pair(continuous=False)
    assert pair.fast.action_space == pair.plain.action_space
    pair.reset(seed=2)
    pair.drive(driver, 250)
    if isinstance(driver, GoodButtonDriver):
        assert pair.plain.tile_visited_count > 20


def test_episodes_are_truncated_equally_after_1000_steps() -> None:
    fast, plain = gymnasium.make(FAST_ID, view="playfield"), gymnasium.make("CarRacing-v3")
    plain.unwrapped._render = lambda mode: np.zeros((96, 96, 3), np.uint8)
    for env in (fast, plain):
        env.reset(seed=0)
    action = np.array([0.3, 0.01, 0], np.float32)
    for step in range(1, 1001):
        _, *ours = fast.step(action)
        _, *expected = plain.step(action)
        assert ours == expected
        assert ours[1:3] == [False, step == 1000]
    assert state(fast.unwrapped) == state(plain.unwrapped)
    fast.close()
    plain.close()
