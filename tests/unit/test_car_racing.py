"""CarRacing in the pipeline, compared with a plain Gymnasium environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d import car_dynamics
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.errors import ConfigError
from pipeline.config.presets import load_config
from pipeline.config.schema import EnvConfig
from pipeline.data.shards import read_episodes
from pipeline.envs import registry
from pipeline.envs.car_racing import CarActions, CarRacing, forget_tracks
from pipeline.envs.car_sprites import reduce_observation
from pipeline.envs.registry import check_environment, environment_class, make_environment
from pipeline.execution.in_process import InProcessExecutor
from pipeline.stages import collect
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from tests.counting import CountingEnv, counting_config

TRACK = 4
STEPS = 30
# Full gas and slowly to the left: tiles are visited, the car turns and leaves the road.
ACTIONS = [np.array([-0.02 * t, 1.0, 0.0], np.float32) for t in range(STEPS)]


@pytest.fixture(scope="module")
def plain() -> list[tuple[NDArray[np.uint8], float, bool, bool]]:
    """(observation, reward, terminated, truncated) of Gymnasium's own environment, beginning with its reset."""
    env = gymnasium.make("CarRacing-v3", max_episode_steps=STEPS)
    observation, _ = env.reset(seed=TRACK)
    rows: list[Any] = [(observation, 0.0, False, False)]
    for action in ACTIONS:
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, float(reward), terminated, truncated))
    env.close()
    return rows


@pytest.fixture(scope="module", params=["texture", "gymnasium"])
def config(request: pytest.FixtureRequest) -> EnvConfig:
    return EnvConfig(max_episode_steps=STEPS, rendering=request.param)


@pytest.fixture(scope="module")
def env(config: EnvConfig) -> Iterator[CarRacing]:
    env = CarRacing(config)
    yield env
    env.close()


def area_average(observation: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W, 3) to (64, 64, 3): each new pixel is the unrounded mean of the area that it covers."""

    def weights(size: int) -> NDArray[np.float64]:
        edges = np.linspace(0, size, 65)
        old = np.arange(size)
        overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        return np.asarray(np.clip(overlap, 0, None) * 64 / size)

    rows, columns = weights(observation.shape[0]), weights(observation.shape[1])
    return np.asarray(np.einsum("yh,xw,hwc->yxc", rows, columns, observation.astype(np.float64), optimize=True))


def drive(env: CarRacing, track: int = TRACK) -> list[tuple[bytes, float, bool, bool]]:
    rows = [(env.reset(track).tobytes(), 0.0, False, False)]
    for action in ACTIONS:
        frame, reward, terminated, truncated = env.step(action)
        rows.append((frame.tobytes(), reward, terminated, truncated))
    return rows


def test_frames_rewards_and_ends_equal_gymnasiums(
    env: CarRacing, config: EnvConfig, plain: list[tuple[NDArray[np.uint8], float, bool, bool]]
) -> None:
    rows = drive(env)
    assert len(rows) == len(plain) == STEPS + 1
    for (frame, *rest), (observation, *plain_rest) in zip(rows, plain, strict=True):
        assert rest == plain_rest
        pixels = np.frombuffer(frame, np.uint8).reshape(64, 64, 3)
        error = np.abs(pixels - area_average(observation[:84]))
        if config.rendering == "gymnasium":
            # cv2 rounds once, in fixed point where possible.
            assert error.max() < 0.51
        else:
            assert error.mean() < 2, "the whole episode is within the zoom of the first second"
    assert rows[-1][2:] == (False, True), "truncated at max_episode_steps, not terminated"
    rewards = [reward for _, reward, *_ in rows[1:]]
    assert min(rewards) == pytest.approx(-0.1)
    assert max(rewards) > 1, "a tile was visited"
    assert len({frame for frame, *_ in rows}) > STEPS // 2, "the scene moves"


def test_same_track_gives_the_same_bits_after_other_episodes(env: CarRacing, config: EnvConfig) -> None:
    forget_tracks()
    fresh = CarRacing(config)
    reference = drive(fresh)
    fresh.close()
    drive(env, TRACK + 1)
    env.reset(TRACK + 2)  # an episode that is abandoned halfway
    env.step(ACTIONS[-1])
    assert drive(env) == reference
    assert drive(env) == reference


def test_different_seeds_give_different_tracks(env: CarRacing) -> None:
    assert env.reset(1).tobytes() != env.reset(2).tobytes()


def test_only_the_full_view_has_the_status_bar() -> None:
    observation = np.zeros((96, 96, 3), np.uint8)
    observation[84:] = 200  # the bar
    observation[10:20, 30:40] = (250, 100, 50)
    full, playfield = reduce_observation(observation, "full"), reduce_observation(observation, "playfield")
    assert full.shape == playfield.shape == (64, 64, 3)
    assert (full[-8:] == 200).all()
    assert not playfield[-8:].any()
    assert np.abs(full - area_average(observation)).max() < 0.51
    assert np.abs(playfield - area_average(observation[:84])).max() < 0.51


def test_view_follows_the_config(env: CarRacing, config: EnvConfig) -> None:
    full = CarRacing(config.model_copy(update={"view": "full"}))
    frame = full.reset(TRACK)
    full.close()
    assert frame[-4:].mean() < 20, "the bar is black except for its gauges"
    assert env.reset(TRACK)[-4:].mean() > 60


def test_colours_are_random_if_the_config_says_so(env: CarRacing, config: EnvConfig) -> None:
    colorful = CarRacing(config.model_copy(update={"domain_randomize": True}))
    frames = [colorful.reset(track) for track in (1, 2, 1)]
    colorful.close()
    np.testing.assert_array_equal(frames[0], frames[2])
    grass = [frame[:, :8].reshape(-1, 3).mean(axis=0) for frame in frames]
    assert np.abs(grass[0] - grass[1]).max() > 20
    assert np.abs(grass[0] - env.reset(1)[:, :8].reshape(-1, 3).mean(axis=0)).max() > 20


def test_human_scene_is_large_and_equals_gymnasiums(env: CarRacing) -> None:
    """For both ways to draw the frames."""
    plain = gymnasium.make("CarRacing-v3", render_mode="rgb_array")
    plain.reset(seed=TRACK)
    env.reset(TRACK)
    for action in ACTIONS[:5]:
        plain.step(action)
        env.step(action)
    scene = env.render()
    assert scene.dtype == np.uint8
    assert scene.shape == (400, 600, 3)
    np.testing.assert_array_equal(scene, plain.render())
    plain.close()


def test_squashing_follows_the_paper(env: CarRacing) -> None:
    outputs = np.random.default_rng(0).normal(0, 2, (50, 3)).astype(np.float32)
    kept = outputs.copy()
    actions = env.actions.squash(outputs)
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(outputs, kept)
    for (steer, gas, brake), action in zip(outputs.astype(np.float64), actions, strict=True):
        want = [np.tanh(steer), (np.tanh(gas) + 1) / 2, min(max(np.tanh(brake), 0), 1)]
        np.testing.assert_allclose(action, want, atol=1e-6)
    assert (actions[:, 2] == 0).any()
    assert np.all((env.actions.low <= actions) & (actions <= env.actions.high))
    np.testing.assert_array_equal(env.actions.squash(np.zeros(3, np.float32)), np.array([0, 0.5, 0], np.float32))


def test_squashed_row_does_not_depend_on_other_rows_or_its_index(env: CarRacing) -> None:
    outputs = np.random.default_rng(0).normal(0, 2, (33, 3)).astype(np.float32)
    whole = env.actions.squash(outputs)
    for row in range(33):
        assert env.actions.squash(outputs[row]).tobytes() == whole[row].tobytes()
        assert env.actions.squash(outputs[row : row + 4])[0].tobytes() == whole[row].tobytes()


def test_bounds_equal_gymnasiums() -> None:
    space = gymnasium.make("CarRacing-v3").action_space
    assert isinstance(space, gymnasium.spaces.Box)
    np.testing.assert_array_equal(CarActions().low, space.low)
    np.testing.assert_array_equal(CarActions().high, space.high)
    assert space.shape == (CarActions().size,)


# ---- repeated actions


@pytest.mark.parametrize("view", ["playfield", "full"])
@pytest.mark.parametrize("repeat", [2, 4])
def test_repeated_action_acts_on_each_step_and_shows_the_last_frame(config: EnvConfig, view: str, repeat: int) -> None:
    config = config.model_copy(update={"view": view})
    once, repeated = CarRacing(config), CarRacing(config.model_copy(update={"action_repeat": repeat}))
    assert repeated.reset(TRACK).tobytes() == once.reset(TRACK).tobytes()
    for start in range(0, STEPS, repeat):
        steps = [once.step(ACTIONS[start]) for _ in range(min(repeat, STEPS - start))]
        frame, *rest = repeated.step(ACTIONS[start])
        assert frame.tobytes() == steps[-1].frame.tobytes()
        assert rest == [sum(step.reward for step in steps), steps[-1].terminated, steps[-1].truncated]
        assert steps[-1].truncated == (start + repeat >= STEPS)


def test_action_is_not_repeated_after_the_end(config: EnvConfig) -> None:
    """The lap ends in the first of four repeated steps."""
    once, repeated = CarRacing(config), CarRacing(config.model_copy(update={"action_repeat": 4}))
    for env in (once, repeated):
        env.reset(TRACK)
        env._game.new_lap = True
    first, whole = once.step(ACTIONS[0]), repeated.step(ACTIONS[0])
    assert (whole.terminated, whole.reward) == (True, first.reward)
    assert first.terminated
    assert whole.frame.tobytes() == first.frame.tobytes()


def test_action_repeat_is_refused_by_environments_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    repeating = counting_config({"env.action_repeat": 2, "mdnrnn.window": 3})
    check_environment(repeating)
    monkeypatch.delattr(CountingEnv, "repeats_actions")
    registry._traits.cache_clear()
    with pytest.raises(ConfigError, match=r"env.action_repeat 2: tests.counting:CountingEnv does not repeat actions"):
        check_environment(repeating)
    check_environment(counting_config())


# ---- exploring starts


def starts(env: CarRacing, count: int) -> Iterator[Any]:
    """The state of the game after each of some starts on a track."""
    for seed in range(count):
        env.reset_anywhere(TRACK, np.random.default_rng(seed))
        yield env._game


def test_start_depends_only_on_its_stream(env: CarRacing) -> None:
    def episode() -> list[bytes]:
        first = env.reset_anywhere(TRACK, np.random.default_rng(7))
        return [first.tobytes(), *(env.step(action).frame.tobytes() for action in ACTIONS[:10])]

    here = episode()
    env.reset(TRACK + 1)
    env.step(ACTIONS[0])
    assert episode() == here
    assert env.reset_anywhere(TRACK, np.random.default_rng(8)).tobytes() != here[0]
    assert env.reset(TRACK).tobytes() == drive(env)[0][0], "a later ordinary start is unaffected"


def test_starts_cover_the_track_near_the_road_at_driving_speed(env: CarRacing) -> None:
    nearest, speeds, turned = [], [], []
    for game in starts(env, 150):
        tiles = np.array(game.track)
        away = np.hypot(*(tiles[:, 2:4] - np.array(game.car.hull.position)).T)
        nearest.append((away.argmin() / len(tiles), away.min()))
        speeds.append(np.hypot(*game.car.hull.linearVelocity))
        turned.append((game.car.hull.angle - tiles[away.argmin(), 1] + np.pi) % (2 * np.pi) - np.pi)
        assert game.t > 1, "the first second's zoom is over"
    where, off_road = np.array(nearest).T
    assert np.histogram(where, bins=5, range=(0, 1))[0].min() > 15
    assert 2 < off_road.mean() < 5 and off_road.max() < 17  # about |N(0, 4)|
    assert np.median(np.abs(turned)) < 0.5
    assert 30 < np.mean(speeds) < 50 and max(speeds) <= 81


def test_started_car_is_whole_and_rolls(env: CarRacing) -> None:
    for game in starts(env, 30):
        hull = game.car.hull
        forward = hull.linearVelocity.dot(hull.GetWorldVector((0, 1)))
        for wheel, (x, y) in zip(game.car.wheels, car_dynamics.WHEELPOS, strict=True):
            place = hull.GetLocalPoint(wheel.position)
            assert (place.x, place.y) == pytest.approx((x * car_dynamics.SIZE, y * car_dynamics.SIZE), abs=0.05)
            assert abs(wheel.omega * wheel.wheel_rad - forward) < 8, "no wheel is blocked or spins"
        before = hull.linearVelocity.length
        env.step(np.zeros(3, np.float32))
        assert abs(hull.linearVelocity.length - before) < 0.1 * before + 2, "the car is not jolted"


def test_random_starts_are_refused_by_environments_without_them() -> None:
    with pytest.raises(ConfigError, match=r"exploring_starts: tests.counting:CountingEnv cannot begin anywhere"):
        check_environment(counting_config({"collect.exploring_starts": 0.1}))
    check_environment(counting_config())
    check_environment(load_config("smoke", ["collect.exploring_starts=1"]))


def test_collect_uses_reproducible_random_starts(local_store: LocalStore, tmp_path: Path) -> None:
    options = ["collect.episodes=3", "collect.episode_steps=5", "mdnrnn.window=4", "collect.episodes_per_shard=3"]
    config = load_config("smoke", ["collect.exploring_starts=1", *options])
    again = LocalStore(tmp_path / "again")
    for store in (local_store, again):
        collect.run(config, store, InProcessExecutor())
    (record,), (record_again,) = (
        read_records(local_store, "rollouts").values(),
        read_records(again, "rollouts").values(),
    )
    assert record.sha256 == record_again.sha256
    episodes = list(read_episodes(local_store, record))
    ordinary = make_environment(config.env)
    for episode in episodes:
        track = seeding.track(config.seed, config.tracks.training, "collect/track", episode.id)
        assert (episode.frames[0] != ordinary.reset(track)).mean() > 0.05


# ---- registry


def test_environments_are_found_by_id_and_by_path() -> None:
    assert environment_class("CarRacing-v3") is CarRacing
    made = make_environment(EnvConfig(id="tests.counting:CountingEnv"))
    assert type(made).__name__ == "CountingEnv"


@pytest.mark.parametrize("env_id", ["CarRacing-v2", "no.such.module:Class", "tests.counting:Nothing", ":", "", ".x:Y"])
def test_unknown_environment_is_refused_with_the_registered_ones(env_id: str) -> None:
    with pytest.raises(ConfigError, match=r"CarRacing-v3") as error:
        environment_class(env_id)
    assert repr(env_id) in str(error.value)
