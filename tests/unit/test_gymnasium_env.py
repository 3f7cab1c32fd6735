"""Gymnasium's environments in the pipeline: frames, ends, options, and the checks before a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig
from pipeline.envs import gymnasium_env, registry
from pipeline.envs.determinism import check_determinism
from pipeline.envs.environment import Environment
from pipeline.envs.frames import to_frame, to_rgb
from pipeline.envs.registry import check_environment, make_environment, traits_of
from tests.counting import counting_config


class Ramp(gymnasium.Env[Any, int]):  # type: ignore[misc]
    """A game for tests. Its options set its frames, its end, and the state that a reset keeps.

    The picture is (80, 100, 3): red is the seed, green the step, blue the column.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        shows: str = "image",
        ends_at: int | None = None,
        end: tuple[bool, bool] = (True, False),
        remembers: bool = False,
        noise: bool = False,
        keeps: bool = False,
        drawn: bool = False,
    ) -> None:
        self.render_mode = render_mode if shows != "nothing" else None
        self._shows, self._ends_at, self._end = shows, ends_at, end
        self._remembers, self._noise, self._keeps = remembers, noise, keeps
        self._episodes = 0
        self._first: int | None = None
        self._drawn = int(np.random.default_rng().integers(2**31)) if drawn else 0
        self.action_space = spaces.Discrete(3)
        image = spaces.Box(0, 255, (80, 100, 3), np.uint8)
        small = spaces.Box(0, 255, (7, 7, 3), np.uint8)
        self.observation_space = {
            "image": image,
            "gray": spaces.Box(0, 255, (80, 100), np.uint8),
            "first": spaces.Box(0, 255, (3, 80, 100), np.uint8),
            "dict": spaces.Dict(codes=small, screen=image, speed=spaces.Box(0, 1, (1,))),
            "two": spaces.Dict(left=image, right=image),
        }.get(shows, spaces.Box(-1, 1, (4,)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episodes += 1
        self._seed, self._step = (seed or 0) % 256, 0
        if self._keeps:
            self._seed = self._first = self._seed if self._first is None else self._first
        return self._observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        over = self._step == self._ends_at
        terminated, truncated = (over and self._end[0]), (over and self._end[1])
        return self._observation(), float(action) + self._drawn, terminated, truncated, {}

    def render(self) -> Any:
        picture = np.zeros((80, 100, 3), np.uint8)
        picture[..., 0], picture[..., 1], picture[..., 2] = self._seed, self._step, np.arange(100)
        if self._remembers:
            picture[..., 0] += self._episodes
        if self._noise:
            picture += np.random.default_rng().integers(9, size=picture.shape, dtype=np.uint8)
        return picture

    def _observation(self) -> Any:
        picture = self.render()
        return {
            "image": picture,
            "gray": picture[..., 1],
            "first": np.moveaxis(picture, 2, 0),
            "dict": {"codes": picture[:7, :7], "screen": picture, "speed": np.zeros(1, np.float32)},
            "two": {"left": picture, "right": picture},
        }.get(self._shows, np.zeros(4, np.float32))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Ramp-v0", entry_point=Ramp)
    yield
    del gymnasium.registry["Ramp-v0"]
    registry._traits.cache_clear()


def config(**env: Any) -> EnvConfig:
    options = {key: env.pop(key) for key in [*env] if key not in EnvConfig.model_fields}
    return EnvConfig(id="Ramp-v0", options=options, **{"max_episode_steps": 50, **env})


def choice(number: int) -> NDArray[np.float32]:
    action: NDArray[np.float32] = np.eye(3, dtype=np.float32)[number]
    return action


def reduced(picture: Any, rows: slice = slice(None), columns: slice = slice(None)) -> Any:
    return to_frame(np.ascontiguousarray(picture[rows, columns]), None)


@pytest.mark.parametrize("shows", ["image", "dict", "nothing visible"])
def test_frames_are_the_observed_or_the_rendered_image(shows: str) -> None:
    env = make_environment(config(shows=shows))
    first = env.reset(77)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert (first[..., 0] == 77).all() and (first[..., 1] == 0).all()
    np.testing.assert_allclose(first[0, :, 2], np.linspace(0.28, 98.7, 64), atol=1)
    assert (env.step(choice(1)).frame[..., 1] == 1).all()
    assert env.render().shape == (80, 100, 3)


def test_gray_images_become_rgb_and_channels_may_come_first() -> None:
    gray = make_environment(config(shows="gray"))
    gray.reset(1)
    frame = gray.step(choice(0)).frame
    assert (frame == 1).all()
    first, last = (make_environment(config(shows=shows)).reset(9) for shows in ("first", "image"))
    np.testing.assert_array_equal(first, last)


def test_crop_is_reduced_by_area_averaging() -> None:
    frame = make_environment(config(crop=[0, 64, 10, 74])).reset(3)
    np.testing.assert_array_equal(frame[0, :, 2], np.arange(10, 74))
    whole = np.arange(128 * 128 * 3).reshape(128, 128, 3).astype(np.uint8) // 2
    averaged = whole.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(to_frame(whole, None) - averaged).max() <= 0.5
    with pytest.raises(ValueError, match=r"env\.crop \[0, 81, 0, 100\] does not fit"):
        make_environment(config(crop=[0, 81, 0, 100])).reset(3)
    for crop in ([5, 5, 0, 9], [0, 9], [-1, 5, 0, 9]):
        with pytest.raises(ValueError, match="crop"):
            config(crop=crop)


@pytest.mark.parametrize("image", [np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((9,), np.uint8)])
def test_observation_that_is_no_image_is_an_error_with_its_shape(image: Any) -> None:
    with pytest.raises(TypeError, match=r"\(H, W, 3\) uint8 was expected"):
        to_rgb(image)


def test_end_is_terminated_only_if_no_limit_was_reached() -> None:
    def last(env: Environment) -> tuple[bool, bool, int]:
        env.reset(1)
        for count in range(1, 100):
            step = env.step(choice(0))
            if step.terminated or step.truncated:
                return step.terminated, step.truncated, count
        raise AssertionError

    assert last(make_environment(config(ends_at=7))) == (True, False, 7)
    assert last(make_environment(config(ends_at=7, end=(True, True)))) == (False, True, 7), "as ViZDoom's timeout"
    assert last(make_environment(config(ends_at=7, end=(False, True)))) == (False, True, 7)
    assert last(make_environment(config(max_episode_steps=9))) == (False, True, 9)
    assert last(make_environment(config(ends_at=9, max_episode_steps=9))) == (True, True, 9)


def test_repeated_action_sums_its_rewards_and_ends_with_the_episode() -> None:
    env = make_environment(config(action_repeat=4, ends_at=6))
    env.reset(1)
    assert env.step(choice(2))[1:] == (8.0, False, False)
    frame, reward, terminated, _ = env.step(choice(2))
    assert (reward, terminated) == (4.0, True) and (frame[..., 1] == 6).all()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"shows": "two"}, "several entries of its observation look like images: set env.frame_key to one of left, ri"),
        ({"shows": "dict", "frame_key": "codes"}, "env.frame_key = 'codes': no image of .* Images: screen"),
        ({"shows": "image", "frame_key": "x"}, "env.frame_key = 'x': Ramp-v0's observation is no Dict"),
        ({"shows": "nothing"}, "no image of at least 32x32 pixels, and it has no render mode rgb_array"),
        ({"speed": 3}, "cannot be made with env.options .*speed.*: TypeError"),
    ],
)
def test_environment_without_frames_is_refused_with_the_key_to_set(env: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_environment(config(**env))


def test_key_selects_one_of_several_images() -> None:
    env = make_environment(config(shows="two", frame_key="right"))
    assert env.reset(4).shape == (64, 64, 3)


def test_used_instance_that_differs_needs_a_new_one_for_each_episode() -> None:
    with pytest.raises(ConfigError, match=r"used before gives another episode.*env\.fresh=true"):
        check_determinism(config(remembers=True), 5, exact=True)
    assert check_determinism(config(remembers=True, fresh=True), 5, exact=True) > 0
    assert check_determinism(config(), 5, exact=True) > 0


def test_instance_that_keeps_its_first_map_is_detected() -> None:
    with pytest.raises(ConfigError, match=r"used before gives another episode.*env\.fresh=true"):
        check_determinism(config(keeps=True), 5, exact=True)
    assert check_determinism(config(keeps=True, fresh=True), 5, exact=True) > 0


def test_randomness_drawn_once_per_instance_is_detected() -> None:
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"is not deterministic"):
            check_determinism(config(drawn=True, fresh=fresh), 5, exact=True)


def test_check_runs_short_episodes_until_it_has_enough_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracks: list[int | None] = []
    reset = Ramp.reset

    def noted(env: Ramp, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        tracks.append(seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(Ramp, "reset", noted)
    check_determinism(config(ends_at=20), 5, exact=True)
    assert tracks == [5, 7, 9, 6, 8, 10, 5, 7, 9, 6, 8, 10]


def test_environment_error_is_refused_before_the_run_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"'Ramp-v0' raised on track seed 5, in reset or.*ValueError: env\.crop"):
        check_determinism(config(crop=[0, 81, 0, 100]), 5, exact=True)


def test_unseeded_randomness_is_refused_for_exact_runs() -> None:
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"is not deterministic.*execution\.exact=false"):
            check_determinism(config(noise=True, fresh=fresh), 5, exact=True)
        assert check_determinism(config(noise=True, fresh=fresh), 5, exact=False) > 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"env.id": "CartPole-v1", "env.view": "full"}, r"env\.view is a key of CarRacing-v3 only"),
        ({"env.id": "CartPole-v1", "env.rendering": "gymnasium"}, r"env\.rendering is a key of CarRacing-v3 only"),
        ({"env.id": "CartPole-v1", "evaluate.rendering": "texture"}, r"evaluate\.rendering is a key of CarRacing"),
        ({"env.id": "CartPole-v1", "collect.exploring_starts": 0.5}, "cannot begin anywhere"),
        ({"env.id": "CartPole-v1", "collect.policy": "brownian"}, r"'brownian': .* discrete actions.*repeat"),
        ({"env.id": "CarRacing-v3", "env.crop": [0, 50, 0, 50]}, r"env\.crop is a key of IDs of Gymnasium only"),
        ({"env.id": "CarRacing-v3", "env.options": {"wings": 2}}, r"CarRacing-v3 does not take them"),
        ({"env.options": {"wings": 2}}, r"env\.options go to gymnasium\.make: the class tests\.counting:CountingEnv"),
        ({"env.id": "CartPole-v99"}, r"env\.id = 'CartPole-v99': .*CartPole"),
        ({"env.id": "Nothing-v0"}, r"env\.id = 'Nothing-v0': .*an ID of Gymnasium"),
    ],
)
def test_options_of_other_games_and_unknown_ids_are_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_environment(counting_config(overrides))


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("ALE/Pong-v5", "ale_py", "atari"), ("MiniGrid-Empty-8x8-v0", "minigrid", "minigrid"),
     ("VizdoomBasic-v1", "vizdoom", "doom"), ("TakeCover", "vizdoom", "doom")],
)  # fmt: skip
def test_missing_package_is_named_with_its_install_command(
    env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module] or [module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs the package {module}.*pip install 'world-models-ray\[{extra}\]'"):
        make_environment(EnvConfig(id=env_id))


def test_module_of_an_environment_id_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ramps.py").write_text(
        "import gymnasium\nfrom tests.unit.test_gymnasium_env import Ramp\n"
        "if 'Steep-v0' not in gymnasium.registry:\n    gymnasium.register('Steep-v0', entry_point=Ramp)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ramps", raising=False)
    assert traits_of(EnvConfig(id="ramps:Steep-v0")).actions.size == 3
    with pytest.raises(ConfigError, match=r"'ramps:Flat-v0': ramps has no class Flat-v0, and .*an ID of"):
        make_environment(EnvConfig(id="ramps:Flat-v0"))
    del gymnasium.registry["Steep-v0"]


@pytest.mark.parametrize("raised", ["KeyError('x')", "RuntimeError('x')", "SystemExit(3)"])
def test_module_that_raises_on_import_is_named(raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_game.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"importing broken_game failed: {raised.partition('(')[0]}"):
        make_environment(EnvConfig(id="broken_game:Game"))


def test_engine_guard_depends_on_the_class_and_not_on_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded: list[str] = []

    @contextmanager
    def guard() -> Iterator[None]:
        guarded.append("engine")
        yield

    monkeypatch.setattr(gymnasium_env, "starting_engines", guard)
    make_environment(config()).reset(1)
    assert guarded == []
    monkeypatch.setattr(Ramp, "__module__", "vizdoom.gymnasium_wrapper.base_gymnasium_env")
    monkeypatch.setattr(Ramp, "frame_skip", 1, raising=False)
    make_environment(config()).reset(1)
    assert guarded == ["engine"]


def test_facts_come_from_an_instance_and_frame_rate_from_its_metadata() -> None:
    traits = traits_of(config())
    assert (traits.actions.size, traits.actions.discrete, traits.steps_per_second) == (3, True, 20.0)
    assert (traits.repeats_actions, traits.explores) == (True, False)
    assert traits_of(EnvConfig()).explores and traits_of(EnvConfig()).steps_per_second == 50.0
    discrete = traits_of(EnvConfig(options={"continuous": False}))
    assert (discrete.actions.size, discrete.actions.discrete) == (5, True)


def test_steps_a_second_count_the_frames_that_vizdoom_skips() -> None:
    env = EnvConfig(id="VizdoomBasic-v1", options={"frame_skip": 4})
    assert traits_of(env).steps_per_second == 35 / 4


def test_tiny_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ramp, "render", lambda self: np.zeros((8, 40, 3), np.uint8))
    with pytest.raises(TypeError, match=r"an image \(8, 40, 3\); expected 32x32 or more"):
        make_environment(config(shows="vector")).reset(1)
