"""Comparison of frames with Gymnasium's: recorded drives with its own drawing, and checks of each frame.

A part of the picture is where Gymnasium's own drawing changes when it draws without that part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import cv2
import numpy as np
from gymnasium.envs.box2d import car_racing
from numpy.typing import NDArray

from pipeline.envs.car_sprites import reduce_observation
from tests.car_drivers import Driver, UndrawnCarRacing

Pixels = NDArray[np.uint8]
Errors = NDArray[np.int64]
Mask = NDArray[np.bool_]
View = Literal["playfield", "full", "observation"]
Wanted = Literal["nothing", "whole", "parts"]

ZOOM_STEPS = 50  # the first second
PARTS_EVERY = 15
_VISITED, _UNVISITED, _BAR = "visited tiles' colour", "other tiles' tint", "status bar"
# Parts, each with the least change of the picture (in levels) without it. Without steering, the wheels are straight;
# without stripes, they are half a turn further.
PARTS = {"wheels": 16, "steering": 2, "stripes": 2, "hull": 16, "kerbs": 16, _VISITED: 2, _UNVISITED: 2, _BAR: 16}
_LIT = 24  # least level of the status bar's return and gauges, which are bright on black
_FEW = 40  # pixels of a part in all pictures of a drive: no average over fewer


@dataclass
class Picture:
    """One of Gymnasium's observations.

    Attributes:
        observation: (96, 96, 3) uint8.
        without: Same observation without a part, by part; empty for most pictures.
    """

    observation: Pixels
    without: dict[str, Pixels] = field(default_factory=dict)


@dataclass
class RecordedFrames:
    """Frames of a recorded drive, and its actions.

    Attributes:
        track: Seed of the track.
        options: Options of the environment.
        actions: Action of every step.
        pictures: The recorded pictures by step, 0 for the reset.
    """

    track: int
    options: dict[str, Any]
    actions: list[Any]
    pictures: dict[int, Picture]

    def until(self, step: int) -> RecordedFrames:
        return RecordedFrames(
            self.track, self.options, self.actions[:step], {at: p for at, p in self.pictures.items() if at <= step}
        )


class PartedCarRacing(UndrawnCarRacing):
    """Gymnasium's CarRacing that draws an observation on request, whole and without each of its parts."""

    picture: Picture | None = None
    wanted: Wanted = "nothing"
    _barless = False

    def _render(self, mode: str) -> Any:
        if mode == "state_pixels" and self.wanted != "nothing":
            self.picture = Picture(self._drawn(), dict(self._parts()) if self.wanted == "parts" else {})
        return super()._render(mode)

    def _render_indicators(self, W: int, H: int) -> None:
        if not self._barless:
            super()._render_indicators(W, H)

    def _drawn(self) -> Pixels:
        observation: Pixels = car_racing.CarRacing._render(self, "state_pixels")
        return observation

    def _parts(self) -> Iterator[tuple[str, Pixels]]:
        car = self.car
        drawlist = car.drawlist
        car.drawlist = [car.hull]
        yield "wheels", self._drawn()
        car.drawlist = [*(_placed(wheel, car.hull) for wheel in car.wheels), car.hull]
        yield "steering", self._drawn()
        car.drawlist = [*(_placed(wheel, car.hull, wheel.joint.angle, math.pi) for wheel in car.wheels), car.hull]
        yield "stripes", self._drawn()
        car.drawlist = car.wheels
        yield "hull", self._drawn()
        car.drawlist = drawlist
        road_poly: list[Any] = self.road_poly  # type: ignore[has-type]
        tiles = [(vertices, color) for vertices, color in road_poly if isinstance(color, np.ndarray)]
        self.road_poly = tiles
        yield "kerbs", self._drawn()
        numbers = {id(color): number for number, (_, color) in enumerate(tiles)}

        def repainted(tint: float) -> list[Any]:
            return [
                (vertices, self.road_color + tint * (numbers[id(color)] % 3) if id(color) in numbers else color)
                for vertices, color in road_poly
            ]

        self.road_poly = repainted(2.55)  # the tints that Gymnasium creates
        yield _VISITED, self._drawn()
        self.road_poly = repainted(0)
        yield _UNVISITED, self._drawn()
        self.road_poly = road_poly
        self._barless = True
        yield _BAR, self._drawn()
        self._barless = False


def _placed(wheel: Any, hull: Any, angle: float = 0, rolled: float = 0) -> Any:
    """The values that ``Car.draw`` reads of a wheel, for another angle to the hull and another phase."""

    class Transform:
        def __mul__(self, vertex: tuple[float, float]) -> Any:
            x, y = vertex
            across, along = hull.GetLocalPoint(wheel.position)
            cos, sin = math.cos(angle), math.sin(angle)
            return hull.GetWorldPoint((across + cos * x - sin * y, along + sin * x + cos * y))

    body = SimpleNamespace(transform=Transform())
    fixtures = [SimpleNamespace(body=body, shape=fixture.shape) for fixture in wheel.fixtures]
    return SimpleNamespace(fixtures=fixtures, color=wheel.color, phase=wheel.phase + rolled)


def densely(step: int) -> Wanted:
    """Every step of the first second, and later every part at intervals."""
    if step % PARTS_EVERY == 0:
        return "parts"
    return "whole" if step < ZOOM_STEPS else "nothing"


def sparsely(step: int) -> Wanted:
    """Two pictures per second."""
    return "whole" if step % 25 == 0 else "nothing"


def record(
    track: int, driver: Driver, steps: int, wanted: Callable[[int], Wanted] = densely, **options: Any
) -> RecordedFrames:
    """Run an episode of at most ``steps`` steps with Gymnasium's own drawing, and keep the wanted pictures."""
    env = PartedCarRacing(**options)
    drive = RecordedFrames(track, options, [], {})
    env.wanted = wanted(0)
    env.reset(seed=track)
    for step in range(steps + 1):
        if step:
            drive.actions.append(driver(env))
            env.wanted = wanted(step)
            *_, terminated, _, _ = env.step(drive.actions[-1])
            if terminated:
                break
        if env.picture is not None:
            drive.pictures[step] = env.picture
            env.picture = None
    env.close()
    return drive


@dataclass
class Frames:
    """The frames that an environment under test shows for a recorded drive.

    Attributes:
        drive: Recorded drive whose actions were replayed.
        view: View of the frames.
        frames: Frames by step, as the drive's pictures.
    """

    drive: RecordedFrames
    view: View
    frames: dict[int, Pixels]

    def reduced(self, observation: Pixels) -> Pixels:
        return observation if self.view == "observation" else reduce_observation(observation, self.view)

    def pairs(self) -> Iterator[tuple[int, Pixels, Pixels]]:
        """Yield (step, frame, Gymnasium's frame)."""
        for step, picture in self.drive.pictures.items():
            yield step, self.frames[step], self.reduced(picture.observation)

    def part(self, name: str) -> Iterator[tuple[int, Errors, Mask, Pixels]]:
        """Yield (step, frame minus Gymnasium's frame, mask of the part, Gymnasium's frame)."""
        for step, frame, reference in self.pairs():
            without = self.drive.pictures[step].without
            if name in without:
                change = np.abs(reference.astype(int) - self.reduced(without[name])).max(axis=2)
                yield step, frame.astype(np.int64) - reference, change >= PARTS[name], reference

    def seen(self, name: str) -> int:
        """The number of pixels of a part after the first second."""
        return sum(int(mask.sum()) for step, _, mask, _ in self.part(name) if step >= ZOOM_STEPS)


def replay_actions(env: Any, drive: RecordedFrames, view: View) -> Frames:
    observation, _ = env.reset(seed=drive.track)
    frames = {0: observation}
    for step, action in enumerate(drive.actions, 1):
        observation, *_ = env.step(action)
        if step in drive.pictures:
            frames[step] = observation
    return Frames(drive, view, frames)


class Rejected(AssertionError):
    """A frame differs from Gymnasium's."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Rejected(message)


def check_whole_frames(frames: Frames) -> None:
    """Mean absolute errors of whole frames: under 1.0, and under 2.0 in the first second."""
    errors = {step: np.abs(frame.astype(int) - reference).mean() for step, frame, reference in frames.pairs()}
    first_second = [error for step, error in errors.items() if step < ZOOM_STEPS]
    afterwards = [error for step, error in errors.items() if step >= ZOOM_STEPS]
    assert len(first_second) == ZOOM_STEPS
    assert len(afterwards) > 8
    _require(max(first_second) < 2.0, f"first second: {max(first_second):.2f}")
    _require(max(afterwards) < 1.0, f"afterwards: {max(afterwards):.2f}")
    _require(bool(np.mean([*first_second, *afterwards]) < 1.0), "on average")


def check_part(name: str, limit: float) -> Callable[[Frames], None]:
    """A check of the mean absolute error where a part is; up to twice the limit in the first second."""

    def check(frames: Frames) -> None:
        first_second: list[Errors] = []
        afterwards: list[Errors] = []
        for step, error, mask, _ in frames.part(name):
            (first_second if step < ZOOM_STEPS else afterwards).append(np.abs(error[mask]))
        _require_below(limit, name, afterwards)
        _require_below(2 * limit, f"{name} in the first second", first_second)

    return check


def _require_below(limit: float, name: str, errors: list[Errors]) -> None:
    """Check the average error over a drive's pixels, if there are enough of them."""
    pixels = np.concatenate(errors)
    if len(pixels) >= _FEW:
        _require(bool(pixels.mean() < limit), f"{name}: {pixels.mean():.1f}")


def check_motion(name: str, least: float) -> Callable[[Frames], None]:
    """A check that a part moves as Gymnasium's: the share of its change that frames show, which is all at 1.

    The change itself is too small: an average of errors would not distinguish it from the edges around it.
    """

    def check(frames: Frames) -> None:
        shown, change, pixels = 0, 0, 0
        for step, error, mask, reference in frames.part(name):
            moved = (reference.astype(int) - frames.reduced(frames.drive.pictures[step].without[name]))[mask]
            shown += int((moved * (moved + error[mask])).sum())
            change += int((moved * moved).sum())
            pixels += len(moved)
        if pixels >= _FEW:
            _require(least < shown / change < 2 - least, f"{name}: {shown / change:.2f}")

    return check


def check_bar(frames: Frames) -> None:
    """The status bar as a whole, the return in it, and its gauges."""
    if frames.view == "playfield":
        return
    check_part(_BAR, 2)(frames)
    text, gauges = [], []
    for _, error, _, reference in frames.part(_BAR):
        lit = reference.max(axis=2) > _LIT
        lit[: len(lit) * 7 // 8] = False
        columns = lit.shape[1] // 8
        text.append(np.abs(error[:, :columns][lit[:, :columns]]))
        gauges.append(np.abs(error[:, columns:][lit[:, columns:]]))
    _require_below(2, "return", text)
    _require_below(2, "gauges", gauges)


def check_tints(frames: Frames) -> None:
    """Visited tiles have lost their tint of 2 or 5 levels, the others have not: the error is below one level."""
    for name in (_VISITED, _UNVISITED):
        errors = [error[mask] for step, error, mask, _ in frames.part(name) if step >= ZOOM_STEPS]
        amiss = np.concatenate(errors)
        if len(amiss) < _FEW:
            continue
        _require(bool(abs(amiss.mean()) < 1), f"{name}: {amiss.mean():.2f} too bright")
        _require(bool(np.abs(amiss).mean() < 2), f"{name}: {np.abs(amiss).mean():.2f}")


def check_seams(frames: Frames) -> None:
    """Within the road or the grass, where Gymnasium's picture is almost flat, no pixel differs by a few levels."""
    around = np.ones((5, 5), np.uint8)
    areas = []
    for step, frame, reference in frames.pairs():
        spread = cv2.dilate(reference, around).astype(int) - cv2.erode(reference, around)
        flat = spread.max(axis=2) <= 6
        flat[:2] = flat[-2:] = flat[:, :2] = flat[:, -2:] = False
        areas.append(flat.mean())
        worst = np.abs(frame.astype(int) - reference)[flat].max(initial=0)
        _require(bool(worst <= 6), f"step {step}: {worst}")
    assert np.mean(areas) > 0.2


# A part's error is below 12, or below a smaller limit if it is drawn by the same calls as Gymnasium's.
CHECKS: dict[str, Callable[[Frames], None]] = {
    "whole frames": check_whole_frames,
    "wheels": check_part("wheels", 2),
    "steering": check_motion("steering", 0.65),
    "stripes": check_motion("stripes", 0.8),
    "hull": check_part("hull", 2),
    "kerbs": check_part("kerbs", 12),
    "status bar": check_bar,
    "tints": check_tints,
    "seams": check_seams,
}


def rejecting(frames: Frames) -> dict[str, str]:
    """The checks that do not hold, and why."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(frames)
        except Rejected as error:
            found[name] = str(error)
    return found
