"""CarRacing: Gymnasium's game with rendering that is dozens of times faster, and the pipeline's environment of it.

``gymnasium.make("pipeline.envs.car_racing:WorldModels/FastCarRacing-v3")`` is a drop-in replacement for
``CarRacing-v3``: the same class with two methods extended. Gymnasium draws 1000x800 pixels and shrinks them to 96x96;
here the observation is drawn at its final size.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

import Box2D
import cv2
import gymnasium
import numpy as np
from gymnasium.envs.box2d.car_racing import SCALE, STATE_H, STATE_W, WINDOW_H, WINDOW_W, ZOOM
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig
from pipeline.envs.actions import Actions, BoxActions, actions_of
from pipeline.envs.car_sprites import (
    BAR_TOP,
    PLAYFIELD_ROWS,
    SHRINK_LOSS,
    VIEWS,
    car_sprites,
    reduce_observation,
    status_bar,
)
from pipeline.envs.environment import Step, configure_headless
from pipeline.envs.track_texture import Colour, EpisodeTexture, Quad, TrackTexture
from pipeline.envs.visible_road import VisibleRoad

ID = "WorldModels/FastCarRacing-v3"

# Texels along each side of the playfield, by frame width: at full zoom, a texel is about one pixel or half a pixel.
_TEXTURE_SIDES = {64: 960, 96: 1920}
# Tracks in a process's cache: enough for a generation. Each takes about 10 MB, including its texture.
_MAX_TRACKS = 24
# Spread of exploring starts, somewhat wider than that of good drives. Standard deviations: metres from the road's
# middle (its edge is at 6.7), radians from its direction, radians between heading and velocity, radians/s.
_START_SPREAD = (4.0, 0.4, 0.1, 1.5)
_MAX_START_SPEED = 80.0  # metres/s
# Shared by all tiles: creating a definition costs more than creating the body.
_STATIC_BODY = Box2D.b2BodyDef(type=Box2D.b2_staticBody)


class _TileColor(np.ndarray[Any, np.dtype[np.float64]]):
    """Colour of a road tile that records assignments: Gymnasium sets the colour when the car touches the tile.

    Attributes:
        tile: Index of the tile.
        touched: List that the index is appended to.
    """

    tile: int
    touched: list[int]

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.touched.append(self.tile)


@dataclass
class _Track:
    """Result of ``_create_track`` for a random generator's state; shared by all episodes and never changed.

    Attributes:
        created: Whether it succeeded; Gymnasium retries if it did not.
        rng_after: State of the generator afterwards.
        start_alpha, track: Gymnasium's attributes of these names.
        polygons: Entries of ``road_poly``: (vertices, colour), with None as the colour of tiles.
        tile_colours: Colours of the tiles before any is visited, (N, 3) float64.
        fixtures: Fixture definitions of the tiles, for use in other worlds.
        textures: Textures by side.
    """

    created: bool
    rng_after: dict[str, Any]
    start_alpha: float
    track: list[tuple[float, float, float, float]]
    polygons: list[tuple[Any, Any]]
    tile_colours: NDArray[np.float64]
    fixtures: list[Any]
    textures: dict[int, TrackTexture] = field(default_factory=dict)


# Keyed by the generator's state and the colours, which determine a track completely.
_tracks: OrderedDict[bytes, _Track] = OrderedDict()


class FastCarRacing(VisibleRoad):
    """CarRacing-v3 with observations that are drawn from a texture of the track.

    Physics, rewards, tracks and episode ends are Gymnasium's code, and every pixel of ``render()`` is Gymnasium's. Only
    the observations differ from Gymnasium's, by about one of 255 levels on average.

    Args:
        args, kwargs: Arguments of CarRacing-v3.
        view: View of observations. ``observation`` is CarRacing-v3's, (96, 96, 3) uint8; ``full`` is the same at 64x64;
            ``playfield`` is the part above the status bar at 64x64, as in the paper.

    Raises:
        ValueError: There is no such view; the message lists the views.

    Attributes:
        unseen: Whether the next steps skip drawing and return no observation, for steps with an unused observation.
    """

    def __init__(
        self, *args: Any, view: Literal["observation", "full", "playfield"] = "observation", **kwargs: Any
    ) -> None:
        if view not in VIEWS:
            raise ValueError(f"view={view!r}: choose one of {', '.join(map(repr, VIEWS))}")
        super().__init__(*args, **kwargs)
        EzPickle.__init__(self, *args, view=view, **kwargs)
        self._view = VIEWS[view]
        height, width, screen_rows = self._view
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        # The status bar covers the ground in the rows below.
        self._canvas = np.zeros((height * BAR_TOP // screen_rows, width, 4), np.uint8)
        self._ground = EpisodeTexture()
        self._touched: list[int] = []
        self._visited: set[int] = set()
        self._bar = status_bar(self._view) if screen_rows > BAR_TOP else None
        self.unseen = False

    def _create_track(self) -> bool:
        colors = (self.road_color, self.bg_color, self.grass_color)
        key = pickle.dumps((self.np_random.bit_generator.state, np.array(colors, np.float64)))
        track = _tracks.get(key)
        if track is None:
            created = bool(super()._create_track())
            track = _tracks[key] = self._remember(created)
            if len(_tracks) > _MAX_TRACKS:
                _tracks.popitem(last=False)
        else:
            _tracks.move_to_end(key)
            self._recreate(track)
        if track.created:
            self._begin_drawing(track)
        return track.created

    def _remember(self, created: bool) -> _Track:
        tiles = [(vertices, color) for vertices, color in self.road_poly if isinstance(color, np.ndarray)]
        return _Track(
            created=created,
            rng_after=self.np_random.bit_generator.state,
            start_alpha=self.start_alpha,
            track=self.track if created else [],
            polygons=[
                (vertices, None if isinstance(color, np.ndarray) else color) for vertices, color in self.road_poly
            ],
            tile_colours=np.array([color for _, color in tiles]),
            fixtures=[
                Box2D.b2FixtureDef(shape=Box2D.b2PolygonShape(vertices=vertices), isSensor=True)
                for vertices, _ in tiles
            ],
        )

    def _recreate(self, known: _Track) -> None:
        """Recreate the state after ``CarRacing._create_track``, without its search for a closed loop."""
        self.np_random.bit_generator.state = known.rng_after
        self.start_alpha = known.start_alpha
        self.road: list[Any] = []
        if not known.created:
            return
        tiles = zip(known.fixtures, known.tile_colours.copy(), strict=True)
        for vertices, color in known.polygons:
            if color is None:
                fixture, color = next(tiles)
                tile = self.world.CreateBody(_STATIC_BODY)
                tile.CreateFixture(fixture)
                tile.userData = tile
                tile.color = color
                tile.road_visited = False
                tile.road_friction = 1.0
                tile.idx = len(self.road)
                self.road.append(tile)
            self.road_poly.append((vertices, color))
        self.track = known.track

    def _begin_drawing(self, track: _Track) -> None:
        """Copy the track's texture, drawing it if necessary, and register a callback on every tile."""
        side = _TEXTURE_SIDES[self._view.width]
        if side not in track.textures:
            tile_colours = iter(track.tile_colours)
            quads = [
                Quad(np.array(vertices, np.float64), _rgb(next(tile_colours) if color is None else color))
                for vertices, color in track.polygons
            ]
            tiles = [index for index, (_, color) in enumerate(track.polygons) if color is None]
            track.textures[side] = TrackTexture(
                quads, tiles, road=_rgb(self.road_color), background=_rgb(self.bg_color), grass=_rgb(self.grass_color),
                side=side,
            )  # fmt: skip
        self._ground.begin(track.textures[side])
        self._touched, self._visited = [], set()
        for tile in self.road:
            # A view of the array that road_poly holds, so that Gymnasium's own drawing sees the change as well.
            color = tile.color.view(_TileColor)
            color.tile, color.touched = tile.idx, self._touched
            tile.color = color

    def _render(self, mode: str) -> Any:
        if mode != "state_pixels" or self.car is None:
            return super()._render(mode)
        if self.unseen:
            return None
        if self._touched:
            for tile in self._touched:
                if tile not in self._visited:
                    self._visited.add(tile)
                    self._ground.visit(tile, zooming=self.t < 1)
            self._touched.clear()

        view, hull = self._view, self.car.hull
        # The first second's zoom, as in CarRacing._render.
        zoom = 0.1 * SCALE * max(1 - self.t, 0) + ZOOM * SCALE * min(self.t, 1)
        pixel_width, pixel_height = WINDOW_W / view.width, view.screen_rows / view.height
        self._ground.draw(
            self._canvas,
            position=hull.position,
            angle=hull.angle,
            origin=(view.width / 2, WINDOW_H * 0.75 / pixel_height),
            pixel_size=(pixel_width / zoom, pixel_height / zoom),
        )
        frame = np.empty((view.height, view.width, 3), np.uint8)
        cv2.cvtColor(self._canvas, cv2.COLOR_RGBA2RGB, dst=frame[: len(self._canvas)])
        wheels = self.car.wheels
        car_sprites(view, zoom).draw(frame, [wheel.joint.angle for wheel in wheels], [wheel.phase for wheel in wheels])
        if self._bar is not None:
            speed = math.hypot(*hull.linearVelocity)
            omegas = [wheel.omega for wheel in wheels]
            self._bar.draw(frame, self.reward, (speed, *omegas, wheels[0].joint.angle, hull.angularVelocity))
        return frame


class CarActions(BoxActions):
    """Steering, gas and brake, squashed as in the paper's carracing code."""

    formula = "steering tanh(x); gas (tanh(x) + 1) / 2; brake max(tanh(x), 0)"

    def __init__(self) -> None:
        super().__init__([-1.0, 0.0, 0.0], [1.0, 1.0, 1.0])

    def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply ``formula``."""
        action = np.tanh(output)
        action[..., 1] = (action[..., 1] + 1) / 2
        np.maximum(action[..., 2], 0, out=action[..., 2])
        return action


class CarRacing:
    """The pipeline's CarRacing environment; see ``pipeline.envs.environment`` for the methods.

    Args:
        config: Section ``env`` of a config.
    """

    repeats_actions = True
    steps_per_second = 50.0

    def __init__(self, config: EnvConfig) -> None:
        self._view = config.view
        self._max_steps = config.max_episode_steps
        self._action_repeat = config.action_repeat
        self._fast = config.rendering == "texture"
        # Without Gymnasium's wrappers: this class applies the step limit.
        configure_headless()
        options = {"render_mode": "rgb_array", "domain_randomize": config.domain_randomize, **config.options}
        try:
            self._game = FastCarRacing(view=config.view, **options) if self._fast else VisibleRoad(**options)
        except TypeError as error:
            raise ConfigError(f"env.options {config.options}: CarRacing-v3 does not take them: {error}") from error
        self.actions: Actions = (
            CarActions() if self._game.continuous else actions_of(self._game.action_space, config.id)
        )
        self._steps = 0

    def describe_frames(self) -> dict[str, Any]:
        """See ``Environment``."""
        rows = PLAYFIELD_ROWS if self._view == "playfield" else STATE_H
        return {
            "view": self._view,
            "crop": {"of": "Gymnasium's observation, 96x96", "rows": [0, rows], "columns": [0, STATE_W]},
            "reduced": "by area averaging",
        }

    def reset(self, track: int) -> NDArray[np.uint8]:
        """See ``Environment.reset``."""
        # Gymnasium keeps one Box2D world for all episodes. A new world ensures that an earlier episode cannot affect
        # the bits of the next one, through the broad-phase tree or the order of contacts.
        game = self._game
        game._destroy()
        game.road = []
        game.car = None
        game.world = Box2D.b2World((0, 0))
        game.unseen = False
        self._steps = 0
        observation, _ = game.reset(seed=track)
        return self._frame(observation)

    def reset_anywhere(self, track: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Begin at a random tile, with small random offsets from its middle and direction, at up to racing speed.

        Exploring starts (Sutton & Barto, section 5.3): a random policy from the start line only sees the straight road
        there and then grass. From a random tile its frames resemble those of a good drive: bends, at speed, without the
        zoom of the first second.
        """
        self.reset(track)
        game = self._game
        _, heading, x, y = game.track[rng.integers(len(game.track))]
        across, turned, slip, yaw_rate = rng.normal(0.0, _START_SPREAD)
        speed = rng.uniform(0.0, _MAX_START_SPEED)
        angle = heading + turned
        position = Box2D.b2Vec2(x + across * math.cos(heading), y + across * math.sin(heading))
        velocity = speed * Box2D.b2Vec2(-math.sin(angle + slip), math.cos(angle + slip))
        _move_car(game.car, position, angle, velocity, yaw_rate)
        game.t = 1.0
        observation, *_ = game.step(None)
        return self._frame(observation)

    def step(self, action: NDArray[np.float32]) -> Step:
        """See ``Environment.step``."""
        earned, native = 0.0, self.actions.native(action)
        for left in reversed(range(min(self._action_repeat, self._max_steps - self._steps))):
            self._game.unseen = left > 0
            observation, reward, terminated, _, _ = self._game.step(native)
            self._steps += 1
            earned += float(reward)
            if terminated:
                break
        if left > 0:  # the episode ended before the step that draws
            self._game.unseen = False
            observation = self._game._render("state_pixels")
        return Step(self._frame(observation), earned, bool(terminated), self._steps >= self._max_steps)

    def render(self) -> NDArray[np.uint8]:
        """See ``Environment.render``."""
        return np.asarray(self._game.render(), np.uint8)

    def close(self) -> None:
        """See ``Environment.close``."""
        self._game.close()

    def _frame(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return observation if self._fast else reduce_observation(observation, self._view)


def _move_car(car: Any, position: Box2D.b2Vec2, angle: float, velocity: Box2D.b2Vec2, yaw_rate: float) -> None:
    """Move a car as one rigid body and set its velocity, with rolling wheels."""
    hull = car.hull
    bodies = [(body, hull.GetLocalPoint(body.position), body.angle - hull.angle) for body in (hull, *car.wheels)]
    hull.transform = (position, angle)
    for body, local_place, turned in bodies:
        body.transform = (hull.GetWorldPoint(local_place), angle + turned)
        arm = body.position - position
        body.linearVelocity = velocity + yaw_rate * Box2D.b2Vec2(-arm.y, arm.x)
        body.angularVelocity = yaw_rate
    for wheel in car.wheels:
        wheel.omega = wheel.linearVelocity.dot(wheel.GetWorldVector((0, 1))) / wheel.wheel_rad


def forget_tracks() -> None:
    """Clear this process's cache of tracks."""
    _tracks.clear()


def _rgb(color: Any) -> Colour:
    """Convert a plain colour to its value after Gymnasium's drawing: truncated to integers, then shrunk."""
    red, green, blue = (max(int(c) - SHRINK_LOSS, 0) for c in color)
    return red, green, blue


if ID not in gymnasium.registry:
    gymnasium.register(
        ID, entry_point="pipeline.envs.car_racing:FastCarRacing", max_episode_steps=1000, reward_threshold=900
    )
