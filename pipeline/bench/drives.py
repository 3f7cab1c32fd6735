"""Recorded drives of a scripted policy that sees the track, replayed so that all sides of a bench do the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from gymnasium.envs.box2d.car_racing import CarRacing
from numpy.typing import NDArray

from pipeline.envs.car_racing import FastCarRacing

_LOOK_AHEAD = 6  # track points, 3.5 units apart
_SPEED = 45.0


@dataclass(frozen=True)
class RecordedDrive:
    """A track and the actions of a whole drive on it.

    Attributes:
        track: Seed of the track.
        actions: Actions, (T, 3) float32.
        episode_return: Return of the episode.
    """

    track: int
    actions: NDArray[np.float32]
    episode_return: float


def record_drive(track: int, max_steps: int = 1000) -> RecordedDrive:
    """Record a drive along the middle of the road to the end of the lap."""
    game = FastCarRacing(view="playfield")
    game.reset(seed=track)
    actions: list[NDArray[np.float32]] = []
    episode_return = 0.0
    ended = False
    while not ended and len(actions) < max_steps:
        actions.append(steer(game))
        _, reward, ended, _, _ = game.step(actions[-1])
        episode_return += reward
    game.close()
    return RecordedDrive(track, np.array(actions), episode_return)


def steer(game: CarRacing) -> NDArray[np.float32]:
    """Compute steering, gas and brake, (3,) float32, towards a point of the track ahead of the car."""
    car = game.car.hull
    x, y = car.position
    points = np.array([point[2:] for point in game.track])
    nearest = int(np.argmin(np.square(points - (x, y)).sum(axis=1)))
    to_x, to_y = points[(nearest + _LOOK_AHEAD) % len(points)] - (x, y)
    sin, cos = math.sin(car.angle), math.cos(car.angle)
    turn = math.atan2(to_x * cos + to_y * sin, to_y * cos - to_x * sin)
    speed = math.hypot(*car.linearVelocity)
    return np.array(
        [np.clip(1.5 * turn, -1, 1), 0.5 if speed < _SPEED else 0, 0.2 if speed > _SPEED + 10 else 0], np.float32
    )
