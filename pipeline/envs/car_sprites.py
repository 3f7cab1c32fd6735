"""Sprites of CarRacing's parts at fixed screen positions: the car and the status bar.

Each sprite is drawn once as Gymnasium draws it (the same pygame calls on the same 1000x800 screen, shrunk by the same
filters) and cached; a frame is composed of a few sprites.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import Box2D
import cv2
import numpy as np
import pygame
from gymnasium.envs.box2d.car_dynamics import (
    HULL_POLY1,
    HULL_POLY2,
    HULL_POLY3,
    HULL_POLY4,
    SIZE,
    WHEEL_R,
    WHEEL_W,
    WHEEL_WHITE,
    WHEELPOS,
)
from gymnasium.envs.box2d.car_racing import STATE_H, STATE_W, WINDOW_H, WINDOW_W
from numpy.typing import NDArray

from pipeline.data.frames import FRAME_SHAPE

Sprite = NDArray[np.float32]

# Rows of the 96x96 observation above the status bar; the paper crops to them (its carracing.py).
PLAYFIELD_ROWS = 84
OBSERVATION_SHAPE = (STATE_H, STATE_W, 3)  # shape of Gymnasium's observations
BAR_TOP = WINDOW_H * PLAYFIELD_ROWS // STATE_H  # 700


def _box2d_vertices(points: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """Vertices of a polygon in the order in which Gymnasium draws them; pygame's filling depends on the order."""
    shape = Box2D.b2PolygonShape(vertices=[(x * SIZE, y * SIZE) for x, y in points])
    return [(x, y) for x, y in shape.vertices]


_HULL = [_box2d_vertices(points) for points in (HULL_POLY1, HULL_POLY2, HULL_POLY3, HULL_POLY4)]
_WHEEL = _box2d_vertices([(-WHEEL_W, WHEEL_R), (WHEEL_W, WHEEL_R), (WHEEL_W, -WHEEL_R), (-WHEEL_W, -WHEEL_R)])
# pygame's smoothscale truncates to integers in both of its passes, which makes a plain colour darker by this value.
SHRINK_LOSS = 2
_HULL_RED = 204 - SHRINK_LOSS
_ANGLES_PER_RADIAN = 40
_PHASES = 32
_HEIGHT, _WIDTH = FRAME_SHAPE[:2]


class View(NamedTuple):
    """Part of Gymnasium's screen that a frame shows, and the frame's size.

    Attributes:
        height, width: Size of a frame in pixels.
        screen_rows: Number of upper rows of the screen that are shown: 800, or 700 without the status bar.
    """

    height: int
    width: int
    screen_rows: int


VIEWS = {
    "observation": View(STATE_H, STATE_W, WINDOW_H),
    "full": View(_HEIGHT, _WIDTH, WINDOW_H),
    "playfield": View(_HEIGHT, _WIDTH, BAR_TOP),
}


def reduce_observation(observation: NDArray[np.uint8], view: str) -> NDArray[np.uint8]:
    """Reduce an observation, (96, 96, 3) uint8, to a frame, (64, 64, 3) uint8, by area averaging.

    All frames from Gymnasium's drawing are made by this function.
    """
    if view == "playfield":
        observation = observation[:PLAYFIELD_ROWS]
    return cv2.resize(observation, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


class _Window:
    """Part of the screen that can be shrunk by itself, because its edges are pixel edges at every size.

    Args:
        view: View of the frame.
        left, top, width, height: Position and size on the screen; x in multiples of 125, y in multiples of 175.
    """

    def __init__(self, view: View, left: int, top: int, width: int, height: int) -> None:
        self.left, self.top, self.width, self.height = left, top, width, height
        self._observed = (width * STATE_W // WINDOW_W, height * STATE_H // WINDOW_H)
        self._size = (width * view.width // WINDOW_W, height * view.height // view.screen_rows)
        self.rows = slice(top * view.height // view.screen_rows, (top + height) * view.height // view.screen_rows)
        self.columns = slice(left * view.width // WINDOW_W, (left + width) * view.width // WINDOW_W)

    def surface(self) -> pygame.Surface:
        return pygame.Surface((self.width, self.height))

    def shrink(self, surface: pygame.Surface) -> Sprite:
        """Shrink as Gymnasium and ``reduce_observation`` do, but without rounding in between: (H, W, 3) float32."""
        scaled = pygame.transform.smoothscale(surface, self._observed)
        pixels = np.transpose(pygame.surfarray.array3d(scaled), (1, 0, 2)).astype(np.float32)
        if self._size != self._observed:
            return cv2.resize(pixels, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
        return pixels


class CarSprites:
    """Sprites of the car at one zoom.

    A sprite is a factor for the pixels below it and a colour to add: (2, h, w, 3) float32. Wheels are drawn in place
    on the hull, at 40 angles per radian and 32 phases of their white stripe. They are grey and cached as (2, h, w),
    because there are enough of them for their size to affect the CPU caches.

    Args:
        view: View of the frame.
        zoom: Screen pixels per world unit.
    """

    def __init__(self, view: View, zoom: float) -> None:
        self._window = _Window(view, 375, 525, 250, 175)
        self._zoom = zoom
        self._wheels: dict[int, Sprite] = {}
        surface = self._window.surface()
        self._draw_hull(surface, (255, 255, 255))
        covered = _coverage(self._window.shrink(surface))
        # Crop to the pixels that the car can reach.
        reach_x, reach_y = self._reach(view)
        self.rows, self.columns = reach_y, reach_x
        first_row, first_column = self._window.rows.start, self._window.columns.start
        self._cut = (
            slice(reach_y.start - first_row, reach_y.stop - first_row),
            slice(reach_x.start - first_column, reach_x.stop - first_column),
        )
        # Half a level more, so that truncation to integers rounds.
        hull = np.stack([1 - covered, covered * np.array([_HULL_RED, 0, 0], np.float32) + 0.5])
        self._hull = np.ascontiguousarray(hull[:, *self._cut])
        self._grey = np.empty(self._hull.shape[:-1], np.float32)
        self._sum = np.empty_like(self._hull)
        self._patch = np.empty_like(self._hull[0])

    def draw(self, frame: NDArray[np.uint8], angles: list[float], phases: list[float]) -> None:
        """Draw the car on a frame.

        Args:
            frame: Frame to draw on, (H, W, 3) uint8.
            angles: Angles of the four wheels relative to the hull, in radians.
            phases: Rotation of each wheel about its axle, in radians.
        """
        grey, total = self._grey, self._sum
        for wheel in range(4):
            angle = round(angles[wheel] * _ANGLES_PER_RADIAN)
            phase = math.floor(phases[wheel] * (_PHASES / (2 * math.pi))) % _PHASES
            key = ((angle + 1000) * _PHASES + phase) * 4 + wheel
            sprite = self._wheels.get(key)
            if sprite is None:
                sprite = self._wheels[key] = self._draw_wheel(wheel, angle, phase)
            if wheel:
                np.add(grey, sprite, out=grey)
            else:
                np.copyto(grey, sprite)
        np.add(self._hull, grey[..., None], out=total)
        below = frame[self.rows, self.columns]
        np.multiply(below, total[0], out=self._patch)
        np.add(self._patch, total[1], out=self._patch)
        # Hull and wheels together may cover slightly more than 100 % of a pixel.
        np.maximum(self._patch, 0, out=self._patch)
        np.copyto(below, self._patch, casting="unsafe")

    def _reach(self, view: View) -> tuple[slice, slice]:
        wheel = math.hypot(WHEEL_W, WHEEL_R)
        unit = SIZE * self._zoom
        reach_x = max(x for x, _ in WHEELPOS) + wheel
        ahead = max(y for poly in _HULL for _, y in poly) / SIZE
        behind = -min(y for poly in _HULL for _, y in poly) / SIZE
        x_scale, y_scale = view.width / WINDOW_W, view.height / view.screen_rows
        x, y = WINDOW_W / 2, WINDOW_H * 3 / 4
        return (
            slice(math.floor((x - reach_x * unit - 1) * x_scale), math.ceil((x + reach_x * unit + 1) * x_scale)),
            slice(math.floor((y - ahead * unit - 1) * y_scale), math.ceil((y + behind * unit + 1) * y_scale)),
        )

    def _draw_hull(self, surface: pygame.Surface, color: tuple[int, int, int]) -> None:
        for poly in _HULL:
            self._polygon(surface, color, poly)

    def _draw_wheel(self, wheel: int, angle: int, phase: int) -> Sprite:
        surface = self._window.surface()
        at_x, at_y = WHEELPOS[wheel]
        turn = angle / _ANGLES_PER_RADIAN
        cos, sin = math.cos(turn), math.sin(turn)

        def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
            return [(cos * x - sin * y + at_x * SIZE, sin * x + cos * y + at_y * SIZE) for x, y in points]

        # Red is the wheel's coverage of a pixel, green its brightness; the hull is on top.
        self._polygon(surface, (255, 0, 0), place(_WHEEL))
        stripe = _stripe((phase + 0.5) * 2 * math.pi / _PHASES)
        if stripe is not None:
            first, last = stripe
            half = WHEEL_W * SIZE
            corners = [(-half, first), (half, first), (half, last), (-half, last)]
            self._polygon(surface, (255, WHEEL_WHITE[0], 0), place(corners))
        self._draw_hull(surface, (0, 0, 0))
        pixels = self._window.shrink(surface)[self._cut]
        return np.stack([-_coverage(pixels[..., 0]), pixels[..., 1]])

    def _polygon(self, surface: pygame.Surface, color: tuple[int, int, int], points: list[tuple[float, float]]) -> None:
        # Gymnasium draws with y upwards and flips the screen; it rounds to whole pixels before the flip.
        left, bottom = WINDOW_W / 2, WINDOW_H / 4
        window = self._window
        path = [
            (int(x * self._zoom + left) - window.left, WINDOW_H - 1 - int(y * self._zoom + bottom) - window.top)
            for x, y in points
        ]
        pygame.draw.polygon(surface, color, path)


@cache
def car_sprites(view: View, zoom: float) -> CarSprites:
    """Create the sprites of a zoom, shared by all environments of a process. There are 51 zooms."""
    return CarSprites(view, zoom)


def _coverage(pixels: Sprite) -> Sprite:
    """Coverage of each pixel, from 0 to 1, by a shape that was drawn with 255 on black."""
    covered: Sprite = np.where(pixels > 0, (pixels + SHRINK_LOSS) / 255, 0).astype(np.float32)
    return covered


def _stripe(phase: float) -> tuple[float, float] | None:
    """Ends of a wheel's white stripe along the wheel, as in Gymnasium's ``Car.draw``; None while it is below."""
    s1, s2 = math.sin(phase), math.sin(phase + 1.2)
    c1, c2 = math.cos(phase), math.cos(phase + 1.2)
    if s1 > 0 and s2 > 0:
        return None
    if s1 > 0:
        c1 = math.copysign(1, c1)
    if s2 > 0:
        c2 = math.copysign(1, c2)
    return WHEEL_R * SIZE * c1, WHEEL_R * SIZE * c2


class StatusBar:
    """Black bar below the playfield, with the return and seven gauges.

    Args:
        view: View of the frame; it must include the bar.
    """

    def __init__(self, view: View) -> None:
        self._window = _Window(view, 0, BAR_TOP, WINDOW_W, WINDOW_H - BAR_TOP)
        self._text_window = _Window(view, 0, BAR_TOP, WINDOW_W // 8, WINDOW_H - BAR_TOP)
        self._gauges: dict[tuple[int, int], Sprite] = {}
        self._texts: dict[str, Sprite] = {}
        self._sum = self._window.shrink(self._window.surface())

    def draw(self, frame: NDArray[np.uint8], reward: float, values: tuple[float, ...]) -> None:
        """Draw the bar on a frame.

        Args:
            frame: Frame to draw on, (H, W, 3) uint8.
            reward: Return so far.
            values: Values of the gauges from left to right, in the order of ``_GAUGES``.
        """
        text = f"{reward:04.0f}"
        sprite = self._texts.get(text)
        if sprite is None:
            sprite = self._texts[text] = self._draw_text(text)
        total = self._sum
        total.fill(0)
        total[:, : sprite.shape[1]] = sprite
        for index, (gauge, value) in enumerate(zip(_GAUGES, values, strict=True)):
            if abs(value) <= _GAUGE_THRESHOLD:
                continue
            end = gauge.end(value)
            sprite = self._gauges.get((index, end))
            if sprite is None:
                sprite = self._gauges[index, end] = self._draw_gauge(gauge, end)
            np.add(total, sprite, out=total)
        np.clip(total, 0, 255, out=total)
        np.rint(total, out=total)
        np.copyto(frame[self._window.rows, self._window.columns], total, casting="unsafe")

    def _draw_text(self, text: str) -> Sprite:
        pygame.font.init()  # every time: an environment with a window shuts down all of pygame when it is closed
        font = pygame.font.Font(pygame.font.get_default_font(), 42)
        surface = self._text_window.surface()
        rendered = font.render(text, True, (255, 255, 255), (0, 0, 0))
        center = (60, WINDOW_H - WINDOW_H * 2.5 / 40.0 - BAR_TOP)
        surface.blit(rendered, rendered.get_rect(center=center))
        return self._text_window.shrink(surface)

    def _draw_gauge(self, gauge: _Gauge, end: int) -> Sprite:
        surface = self._window.surface()
        corners = gauge.corners(end)
        pygame.draw.polygon(surface, gauge.color, [(x, y - BAR_TOP) for x, y in corners])
        return self._window.shrink(surface)


class _Gauge(NamedTuple):
    """A bar that grows upwards or to the right from its cell in Gymnasium's 40 x 40 grid.

    Attributes:
        color: RGB colour.
        place: Column of its cell.
        upright: Whether it grows upwards.
        cells: Length in cells for a value of 1.
    """

    color: tuple[int, int, int]
    place: int
    upright: bool
    cells: float

    def end(self, value: float) -> int:
        """Row or column of the screen at which the bar ends."""
        if self.upright:
            return int(WINDOW_H - _CELL_H * (1 + self.cells * value))
        return int((self.place + self.cells * value) * _CELL_W)

    def corners(self, end: int) -> list[tuple[int, int]]:
        """Corners of the bar on the screen, (x, y) in pixels."""
        left = self.place * _CELL_W
        if self.upright:
            bottom = WINDOW_H - _CELL_H
            return [(left, end), (left + _CELL_W, end), (left + _CELL_W, bottom), (left, bottom)]
        top, bottom = WINDOW_H - 4 * _CELL_H, WINDOW_H - 2 * _CELL_H
        return [(left, top), (end, top), (end, bottom), (left, bottom)]


_CELL_W, _CELL_H = WINDOW_W // 40, WINDOW_H // 40
_GAUGE_THRESHOLD = 1e-4
_GAUGES = (
    _Gauge((255, 255, 255), 5, True, 0.02),  # speed
    _Gauge((0, 0, 255), 7, True, 0.01),  # front left wheel
    _Gauge((0, 0, 255), 8, True, 0.01),  # front right wheel
    _Gauge((51, 0, 255), 9, True, 0.01),  # rear left wheel
    _Gauge((51, 0, 255), 10, True, 0.01),  # rear right wheel
    _Gauge((0, 255, 0), 20, False, -10.0),  # steering
    _Gauge((255, 0, 0), 30, False, -0.8),  # gyroscope
)


@cache
def status_bar(view: View) -> StatusBar:
    """Create the status bar of a view, shared by all environments of a process."""
    return StatusBar(view)
