"""Gymnasium's drawing of CarRacing without the polygons that lie off the screen: the same pixels in less time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.envs.box2d import car_racing
from gymnasium.envs.box2d.car_racing import GRASS_DIM, PLAYFIELD, WINDOW_H, WINDOW_W

_MARGIN = 2.0  # pixels: polygons are antialiased, and their corners are rounded to pixels


class _Polygons:
    """Polygons with four corners, and the circles around them.

    Args:
        polygons: Pairs (corners in world units, colour), in drawing order.
    """

    def __init__(self, polygons: list[tuple[Any, Any]]) -> None:
        self._polygons = polygons
        vertices = np.array([points for points, _ in polygons], np.float64).reshape(len(polygons), 4, 2)
        centers = vertices.mean(axis=1)
        self._radii = np.linalg.norm(vertices - centers[:, None], axis=2).max(axis=1, initial=0.0)
        self._centers = np.ascontiguousarray(centers.T)

    def visible(self, zoom: float, translation: tuple[float, float], angle: float) -> list[tuple[Any, Any]]:
        """Polygons whose circle touches the screen, in drawing order; see ``CarRacing._render_road``."""
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = self._centers
        screen_x = (cos * x - sin * y) * zoom + translation[0]
        screen_y = (sin * x + cos * y) * zoom + translation[1]
        reach = self._radii * zoom + _MARGIN
        seen = (
            (screen_x >= -reach) & (screen_x <= WINDOW_W + reach)
            & (screen_y >= -reach) & (screen_y <= WINDOW_H + reach)
        )  # fmt: skip
        return [self._polygons[index] for index in np.flatnonzero(seen)]


def _grass_patches() -> _Polygons:
    """Patches of grass where Gymnasium draws them; their colour is the environment's."""
    d = GRASS_DIM
    return _Polygons(
        [
            ([(d * x + d, d * y), (d * x, d * y), (d * x, d * y + d), (d * x + d, d * y + d)], None)
            for x in range(-20, 20, 2)
            for y in range(-20, 20, 2)
        ]
    )


_GRASS = _grass_patches()
_FIELD = [(PLAYFIELD, PLAYFIELD), (PLAYFIELD, -PLAYFIELD), (-PLAYFIELD, -PLAYFIELD), (-PLAYFIELD, PLAYFIELD)]


class VisibleRoad(car_racing.CarRacing):  # type: ignore[misc]
    """CarRacing-v3 that draws only the road and grass on the screen. Every pixel is Gymnasium's.

    Args:
        args, kwargs: Arguments of CarRacing-v3.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._road_polygons = _Polygons([])
        self._drawn_road: list[Any] | None = None

    def _render_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        if self._drawn_road is not self.road_poly:  # a reset makes a new list
            self._road_polygons, self._drawn_road = _Polygons(self.road_poly), self.road_poly
        camera = (zoom, translation, angle)
        if _covers_screen(*camera):
            self.surf.fill([int(value) for value in self.bg_color])
        else:
            self._draw_colored_polygon(self.surf, _FIELD, self.bg_color, *camera, clip=False)
        for vertices, _ in _GRASS.visible(*camera):
            self._draw_colored_polygon(self.surf, vertices, self.grass_color, *camera)
        for vertices, color in self._road_polygons.visible(*camera):
            self._draw_colored_polygon(self.surf, vertices, [int(value) for value in color], *camera)


def _covers_screen(zoom: float, translation: tuple[float, float], angle: float) -> bool:
    """Whether the playfield covers the circle around the screen, and so the screen."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (WINDOW_W / 2 - translation[0]) / zoom, (WINDOW_H / 2 - translation[1]) / zoom
    inside = PLAYFIELD - (math.hypot(WINDOW_W, WINDOW_H) / 2 + _MARGIN) / zoom
    return bool(abs(cos * x + sin * y) <= inside and abs(cos * y - sin * x) <= inside)
