"""FastCarRacing as a Gymnasium environment."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import Box2D
import gymnasium
import numpy as np
import pygame
import pytest
from gymnasium.envs.box2d.car_racing import PLAYFIELD, CarRacing
from gymnasium.utils.env_checker import check_env

from pipeline.envs import car_sprites
from pipeline.envs.car_racing import FastCarRacing
from pipeline.envs.visible_road import VisibleRoad
from tests.car_drivers import GoodDriver, RandomDriver, UndrawnCarRacing
from tests.frames import View

FAST_ID = "pipeline.envs.car_racing:WorldModels/FastCarRacing-v3"
VIEWS: dict[View, tuple[int, ...]] = {"observation": (96, 96, 3), "full": (64, 64, 3), "playfield": (64, 64, 3)}


def test_environment_is_registered_like_carracing() -> None:
    env, plain = gymnasium.make(FAST_ID), gymnasium.make("CarRacing-v3")
    assert env.observation_space == plain.observation_space, "a drop-in"
    assert env.action_space == plain.action_space
    for name in ("max_episode_steps", "reward_threshold", "nondeterministic"):
        assert getattr(env.spec, name) == getattr(plain.spec, name)
    assert env.metadata == plain.metadata
    assert isinstance(env.unwrapped, gymnasium.envs.box2d.car_racing.CarRacing)
    env.close()
    plain.close()


@pytest.mark.parametrize(("view", "shape"), VIEWS.items())
def test_space_of_each_view_contains_its_observations(view: View, shape: tuple[int, ...]) -> None:
    env = gymnasium.make(FAST_ID, view=view, continuous=False)
    assert env.observation_space.shape == shape
    assert env.observation_space.contains(env.reset(seed=1)[0])
    assert env.observation_space.contains(env.step(3)[0])
    env.close()


@pytest.mark.parametrize("env_id", ["CarRacing-v3", FAST_ID])
def test_gymnasium_checker_passes(env_id: str) -> None:
    check_env(gymnasium.make(env_id, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("options", [{}, {"domain_randomize": True}])
def test_human_rendering_equals_gymnasiums_to_the_bit(options: dict[str, Any]) -> None:
    env = FastCarRacing(view="playfield", render_mode="rgb_array", **options)
    plain = UndrawnCarRacing(render_mode="rgb_array", **options)
    assert env.render() is plain.render() is None
    for _ in range(2):  # the second time on a cached track
        env.reset(seed=3)
        plain.reset(seed=3)
        driver = RandomDriver(2) if options else GoodDriver()
        for step in range(60):
            action = driver(plain)
            env.step(action)
            plain.step(action)
            if step % 12 == 11:
                scene = env.render()
                assert scene.shape == (400, 600, 3)
                np.testing.assert_array_equal(scene, plain.render())
        assert plain.tile_visited_count > 3


@pytest.mark.parametrize("options", [{}, {"domain_randomize": True}])
def test_drawing_without_hidden_polygons_equals_gymnasiums_to_the_bit(options: dict[str, Any]) -> None:
    """On the road, beyond the grass at the edge of the playfield, and turned to all sides; at every zoom."""
    rng = np.random.default_rng(5)
    ours, gymnasiums = (made("rgb_array", **options) for made in (VisibleRoad, CarRacing))
    for track in range(2):  # the second episode draws another road
        for env in (ours, gymnasiums):
            env.reset(seed=track)
        for step in range(70):
            if step >= 30:
                place, angle = rng.uniform(-PLAYFIELD, PLAYFIELD, 2), float(rng.uniform(-7, 7))
                for env in (ours, gymnasiums):
                    env.car.hull.transform = (Box2D.b2Vec2(*map(float, place)), angle)
                    env.t = (0.1, 0.6, 1.0, 3.0)[step % 4]  # the zoom grows in the first second
            pixels = [[env._render("state_pixels"), env.render()] for env in (ours, gymnasiums)]
            for mine, theirs in zip(*pixels, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            if step < 30:
                for env in (ours, gymnasiums):
                    env.step(np.array([0.1, 1.0, 0.0], np.float32))


def test_human_rendering_changes_no_observation() -> None:
    env, watched = FastCarRacing(view="full"), FastCarRacing(view="full", render_mode="rgb_array")
    driver = GoodDriver()
    np.testing.assert_array_equal(env.reset(seed=2)[0], watched.reset(seed=2)[0])
    for _ in range(40):
        action = driver(env)
        watched.render()
        np.testing.assert_array_equal(env.step(action)[0], watched.step(action)[0])


@pytest.mark.parametrize("view", VIEWS)
def test_stored_observation_does_not_change(view: View) -> None:
    env = FastCarRacing(view=view)
    driver = GoodDriver()
    kept = [env.reset(seed=1)[0]]
    copies = [kept[0].copy()]
    for _ in range(30):
        kept.append(env.step(driver(env))[0])
        copies.append(kept[-1].copy())
    env.reset(seed=2)
    assert not np.array_equal(copies[0], copies[-1])
    for frame, before in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(frame, before)


def test_pickle_and_copy_keep_the_view() -> None:
    env = FastCarRacing(view="playfield", continuous=False)
    for other in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert other.observation_space == env.observation_space
        assert other.action_space == env.action_space
        np.testing.assert_array_equal(other.reset(seed=1)[0], env.reset(seed=1)[0])


def test_environment_works_after_its_window_is_closed() -> None:
    """Gymnasium ends all of pygame, including fonts, when its window closes."""
    undisturbed, driver = FastCarRacing(view="full"), GoodDriver()
    undisturbed.reset(seed=4)
    actions, frames = [], []
    for _ in range(100):
        actions.append(driver(undisturbed))
        frames.append(undisturbed.step(actions[-1])[0])
    car_sprites.status_bar.cache_clear()  # otherwise the cached texture has all these returns already
    env = FastCarRacing(view="full")
    env.reset(seed=4)
    pygame.quit()
    for action, frame in zip(actions, frames, strict=True):
        np.testing.assert_array_equal(env.step(action)[0], frame)
    env.render_mode = "rgb_array"
    assert env.render().shape == (400, 600, 3)


def test_first_parameter_is_that_of_gymnasium() -> None:
    assert FastCarRacing("rgb_array").render_mode == CarRacing("rgb_array").render_mode == "rgb_array"


def test_unknown_view_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"view='foo': choose one of 'observation', 'full', 'playfield'"):
        gymnasium.make(FAST_ID, view="foo")


IMPORT = """
import os, cv2
before = dict(os.environ), cv2.getNumThreads()
import pipeline.envs.car_racing
assert (dict(os.environ), cv2.getNumThreads()) == before
"""


def test_import_changes_no_state_of_the_process() -> None:
    """``render_mode="human"`` must still open a window, also for Gymnasium's own environments."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SDL_")}
    subprocess.run([sys.executable, "-c", IMPORT], check=True, env=environment)
