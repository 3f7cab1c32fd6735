"""Drivers for CarRacing in tests, Gymnasium's game without its drawing, and the state that a step changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.envs.box2d import car_racing
from numpy.typing import NDArray

Driver = Callable[[Any], Any]
"""A function from an environment to the next action for its ``step``."""

_LOOK_AHEAD = 6  # points of the track, 3.5 units each
_BLANK = np.zeros((car_racing.STATE_H, car_racing.STATE_W, 3), np.uint8)


class UndrawnCarRacing(car_racing.CarRacing):  # type: ignore[misc]
    """Gymnasium's own game without the drawing of observations, on which no physics depends."""

    def _render(self, mode: str) -> Any:
        return _BLANK if mode == "state_pixels" else super()._render(mode)


class _TrackDriver:
    def __init__(self) -> None:
        self._nearest = 0

    def _where(self, env: Any) -> tuple[float, float]:
        """The angle to the right of a point ahead on the track, and the speed."""
        hull, track = env.car.hull, env.track
        x, y = hull.position
        around = [(self._nearest + step) % len(track) for step in range(-3, 12)]
        self._nearest = min(around, key=lambda point: math.hypot(track[point][2] - x, track[point][3] - y))
        *_, ahead_x, ahead_y = track[(self._nearest + _LOOK_AHEAD) % len(track)]
        right, forward = hull.GetLocalVector((ahead_x - x, ahead_y - y))
        return math.atan2(right, forward), math.hypot(*hull.linearVelocity)


class GoodDriver(_TrackDriver):
    """Steers towards a point ahead on the track, and slows down in turns. It finishes laps."""

    def __call__(self, env: Any) -> NDArray[np.float32]:
        turn, speed = self._where(env)
        wanted = 55 - 40 * min(abs(turn), 0.8)
        return np.array([np.clip(2 * turn, -1, 1), 0.5 * (speed < wanted), 0.4 * (speed > wanted + 10)], np.float32)


class GoodButtonDriver(_TrackDriver):
    """Finishes laps with CarRacing's discrete actions."""

    def __call__(self, env: Any) -> int:
        turn, speed = self._where(env)
        if abs(turn) > 0.1:
            return 1 if turn > 0 else 2
        if speed > 45:
            return 4
        return 3 if speed < 35 else 0


class RandomDriver:
    """Holds a random action for some steps; with ``buttons``, one of the discrete ones."""

    def __init__(self, seed: int, *, buttons: bool = False) -> None:
        self._rng = np.random.default_rng(seed)
        self._buttons = buttons
        self._left = 0
        self._action: Any = None

    def __call__(self, env: Any) -> Any:
        if not self._left:
            self._left = int(self._rng.integers(1, 12))
            if self._buttons:
                self._action = int(self._rng.integers(5))
            else:
                self._action = self._rng.uniform((-1, 0, -0.5), (1, 1, 0.5)).astype(np.float32).clip((-1, 0, 0), 1)
        self._left -= 1
        return self._action


def straight_on(env: Any) -> NDArray[np.float32]:
    """Full gas straight ahead: leaves the road and the playfield."""
    return np.array([0, 1, 0], np.float32)


def state(env: Any) -> list[Any]:
    """The state of the game that a step changes, as exact numbers."""
    car = env.car
    hull = car.hull
    values = [
        *hull.position, hull.angle, *hull.linearVelocity, hull.angularVelocity,
        car.fuel_spent, len(car.particles), env.reward, env.tile_visited_count, env.new_lap, env.t,
    ]  # fmt: skip
    for wheel in car.wheels:
        values += [
            wheel.omega, wheel.phase, wheel.gas, wheel.brake, wheel.joint.angle, wheel.joint.motorSpeed,
            *wheel.position, wheel.angle, *wheel.linearVelocity, wheel.angularVelocity,
            sorted(tile.idx for tile in wheel.tiles),
        ]  # fmt: skip
    return values
