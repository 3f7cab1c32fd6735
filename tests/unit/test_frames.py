"""FastCarRacing's frames are close to Gymnasium's in every part, and the checks reject faulty frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.envs import car_racing, car_sprites
from pipeline.envs.car_racing import FastCarRacing, forget_tracks
from pipeline.envs.car_sprites import CarSprites, StatusBar
from pipeline.envs.track_texture import EpisodeTexture, TrackTexture
from tests.car_drivers import Driver, GoodDriver, RandomDriver, straight_on
from tests.frames import (
    CHECKS,
    PARTS,
    ZOOM_STEPS,
    Frames,
    RecordedFrames,
    View,
    record,
    rejecting,
    replay_actions,
    sparsely,
)

VIEWS: tuple[View, ...] = get_args(View)
DRIVES: dict[str, Callable[[], RecordedFrames]] = {
    "well": lambda: record(3, GoodDriver(), 330),
    "at random": lambda: record(7, RandomDriver(1), 240),
    "off the playfield": lambda: record(11, straight_on, 300),
    "in random colours": lambda: record(5, GoodDriver(), 330, domain_randomize=True),
    "on a road of (2, 151, 69)": lambda: record(53, GoodDriver(), 240, domain_randomize=True),
}


@pytest.fixture(scope="module")
def drives() -> dict[str, RecordedFrames]:
    """Recorded once: Gymnasium draws some 1,500 pictures."""
    return {name: drive() for name, drive in DRIVES.items()}


@pytest.fixture(scope="module", params=[(name, view) for name in DRIVES for view in VIEWS], ids=" in view ".join)
def frames(request: pytest.FixtureRequest, drives: dict[str, RecordedFrames]) -> Frames:
    name, view = request.param
    return replay_actions(FastCarRacing(view=view, **drives[name].options), drives[name], view)


@pytest.mark.parametrize("check", CHECKS)
def test_frames_are_close_to_gymnasiums(frames: Frames, check: str) -> None:
    CHECKS[check](frames)


@pytest.mark.parametrize("first", range(0, 30, 15))
def test_whole_frames_are_close_to_gymnasiums_on_many_tracks(first: int) -> None:
    for track in range(first, first + 15):
        view: View = "playfield" if track % 4 < 2 else "full"
        driver = GoodDriver() if track % 2 else RandomDriver(track)
        frames = replay_actions(FastCarRacing(view=view), record(track, driver, 150, sparsely), view)
        errors = {step: np.abs(frame.astype(int) - reference).mean() for step, frame, reference in frames.pairs()}
        assert max(error for step, error in errors.items() if step < ZOOM_STEPS) < 2, f"track {track}: {errors}"
        assert np.mean([error for step, error in errors.items() if step >= ZOOM_STEPS]) < 1, f"track {track}: {errors}"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["well", "in random colours"])
def test_good_drives_show_every_part(drives: dict[str, RecordedFrames], view: View, name: str) -> None:
    frames = replay_actions(FastCarRacing(view=view, **drives[name].options), drives[name], view)
    seen = {part: frames.seen(part) for part in PARTS}
    absent = {"status bar"} if view == "playfield" else set()
    assert min(seen[part] for part in PARTS.keys() - absent - {"steering"}) > 100, seen


@pytest.mark.parametrize("view", VIEWS)
def test_random_drive_shows_turning_wheels(drives: dict[str, RecordedFrames], view: View) -> None:
    assert replay_actions(FastCarRacing(view=view), drives["at random"], view).seen("steering") > 60


def test_every_view_has_its_shape_with_or_without_the_status_bar() -> None:
    shapes: dict[View, tuple[int, ...]] = {"playfield": (64, 64, 3), "full": (64, 64, 3), "observation": (96, 96, 3)}
    for view, shape in shapes.items():
        env = FastCarRacing(view=view)
        frame, _ = env.reset(seed=3)
        for _ in range(ZOOM_STEPS):
            frame, *_ = env.step(np.zeros(3, np.float32))
        assert frame.shape == env.observation_space.shape == shape
        assert frame.dtype == env.observation_space.dtype == np.uint8
        assert (frame[-1, -10:].max() == 0) == (view != "playfield"), "black below the gauges"


# ---- mutants: frames with a fault, and the checks that reject it

Mutant = Callable[[pytest.MonkeyPatch], type[FastCarRacing]]


def changed(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Mutant:
    """A mutant whose whole frames are changed."""

    class Changed(FastCarRacing):
        def _render(self, mode: str) -> Any:
            drawn = super()._render(mode)
            return np.ascontiguousarray(change(drawn)) if mode == "state_pixels" else drawn

    return lambda patch: Changed


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Mutant:
    """A mutant whose method is replaced by a function of the old one."""

    def mutate(patch: pytest.MonkeyPatch) -> type[FastCarRacing]:
        patch.setattr(owner, name, make(getattr(owner, name)))
        return FastCarRacing

    return mutate


def no_kerbs(original: Any) -> Any:
    def init(self: Any, quads: Any, tiles: Any, **kwargs: Any) -> None:
        original(self, [quads[tile] for tile in tiles], range(len(tiles)), **kwargs)

    return init


def no_tints(original: Any) -> Any:
    def init(self: Any, quads: Any, tiles: Any, *, road: Any, **kwargs: Any) -> None:
        plain = [quad._replace(color=road) if index in set(tiles) else quad for index, quad in enumerate(quads)]
        original(self, plain, tiles, road=road, **kwargs)

    return init


def dark_lines(original: Any) -> Any:
    """A mutant with dark lines, two texels wide, between the blocks of a texture."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for place in range(self.side // 8, self.side, self.side // 8):
            for line in (self.levels[0][place : place + 2], self.levels[0][:, place : place + 2]):
                np.subtract(line, np.minimum(line, 15), out=line)

    return init


def zoomed_in(original: Any) -> Any:
    def draw(self: Any, out: Any, *, pixel_size: tuple[float, float], **kwargs: Any) -> None:
        width, height = pixel_size
        full = 1000 / out.shape[1] / (2.7 * 6)
        original(self, out, pixel_size=(full, full * height / width), **kwargs)

    return draw


def never_steered(original: Any) -> Any:
    return lambda self, frame, angles, phases: original(self, frame, [0.0] * 4, phases)


def never_rolled(original: Any) -> Any:
    return lambda self, frame, angles, phases: original(self, frame, angles, [0.0] * 4)


def nothing(original: Any) -> Any:
    return lambda self, *args, **kwargs: None


def blank(original: Any) -> Any:
    return lambda self, *args, **kwargs: np.zeros_like(original(self, *args, **kwargs))


class Fault(NamedTuple):
    """A mutant, the checks that must reject it, and the drive for these checks."""

    mutant: Mutant
    checks: set[str]
    drive: str = "well"


FAULTS = {
    "no wheels": Fault(replaced(CarSprites, "_draw_wheel", blank), {"wheels"}),
    "wheels straight on": Fault(replaced(CarSprites, "draw", never_steered), {"steering"}, "at random"),
    "wheels that do not roll": Fault(replaced(CarSprites, "draw", never_rolled), {"stripes"}),
    "no car": Fault(replaced(CarSprites, "draw", nothing), {"wheels", "hull"}),
    "no kerbs": Fault(replaced(TrackTexture, "__init__", no_kerbs), {"kerbs"}),
    "a row down": Fault(changed(lambda frame: np.roll(frame, 1, axis=0)), {"whole frames", "hull", "kerbs"}),
    "a row up": Fault(changed(lambda frame: np.roll(frame, -1, axis=0)), {"whole frames", "hull", "kerbs"}),
    "a column right": Fault(changed(lambda frame: np.roll(frame, 1, axis=1)), {"whole frames", "hull", "kerbs"}),
    "a column left": Fault(changed(lambda frame: np.roll(frame, -1, axis=1)), {"whole frames", "hull", "kerbs"}),
    "mirrored": Fault(changed(lambda frame: frame[:, ::-1]), {"whole frames", "kerbs"}),
    "colours swapped": Fault(changed(lambda frame: frame[..., ::-1]), {"whole frames", "hull", "kerbs"}),
    "visited tiles left": Fault(replaced(EpisodeTexture, "visit", nothing), {"tints"}),
    "all tiles as if visited": Fault(replaced(TrackTexture, "__init__", no_tints), {"tints"}),
    "no zoom": Fault(replaced(EpisodeTexture, "draw", zoomed_in), {"whole frames"}),
    "seams": Fault(replaced(TrackTexture, "__init__", dark_lines), {"seams"}),
    "no gauges": Fault(replaced(StatusBar, "_draw_gauge", blank), {"status bar"}),
    "no return": Fault(replaced(StatusBar, "_draw_text", blank), {"status bar"}),
    "no status bar": Fault(replaced(StatusBar, "draw", nothing), {"status bar"}),
}


@pytest.fixture
def mutable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Isolate the caches of drawings: neither earlier drawings nor those of the test are used elsewhere."""

    def forget() -> None:
        forget_tracks()
        car_sprites.car_sprites.cache_clear()
        car_sprites.status_bar.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("fault", "view"),
    [
        (name, view)
        for name, fault in FAULTS.items()
        for view in VIEWS
        if view != "playfield" or fault.checks != {"status bar"}
    ],
)
def test_faulty_frames_are_rejected(drives: dict[str, RecordedFrames], mutable: Any, fault: str, view: View) -> None:
    mutant, checks, drive = FAULTS[fault]
    found = rejecting(replay_actions(mutant(mutable)(view=view), drives[drive].until(240), view))
    assert checks <= set(found), found


def test_sound_environment_passes_the_checks_that_reject_faulty_ones(
    drives: dict[str, RecordedFrames], mutable: Any
) -> None:
    for view in VIEWS:
        assert rejecting(replay_actions(FastCarRacing(view=view), drives["well"].until(240), view)) == {}


# ---- episodes on a track share a texture, but not their changes to it


def drive_side_by_side(view: View) -> None:
    """Two simultaneous episodes on one track, and a third one later, show the same frames as alone."""

    def steps(env: FastCarRacing, driver: Driver) -> Iterator[NDArray[np.uint8]]:
        yield env.reset(seed=3)[0]
        for _ in range(150):
            yield env.step(driver(env))[0]

    def stand(env: Any) -> NDArray[np.float32]:
        return np.zeros(3, np.float32)

    together = [steps(FastCarRacing(view=view), GoodDriver()), steps(FastCarRacing(view=view), stand)]
    driving, standing = zip(*zip(*together, strict=True), strict=True)
    after = list(steps(FastCarRacing(view=view), stand))
    for frames, driver in ((driving, GoodDriver()), (standing, stand), (after, stand)):
        alone = steps(FastCarRacing(view=view), driver)
        forget_tracks()
        assert all(np.array_equal(frame, expected) for frame, expected in zip(frames, alone, strict=True))


@pytest.mark.parametrize("view", VIEWS)
def test_episodes_on_one_track_show_only_their_own_visited_tiles(view: View) -> None:
    drive_side_by_side(view)


def test_texture_not_copied_per_episode_is_rejected(mutable: pytest.MonkeyPatch) -> None:
    def begin(self: EpisodeTexture, track: TrackTexture) -> None:
        self._track, self._levels = track, track.levels

    mutable.setattr(EpisodeTexture, "begin", begin)
    with pytest.raises(AssertionError):
        drive_side_by_side("playfield")


def test_shared_textures_are_never_written() -> None:
    forget_tracks()
    drivers = {view: (FastCarRacing(view=view), GoodDriver()) for view in VIEWS}
    for env, _ in drivers.values():
        env.reset(seed=3)
    track = next(track for track in car_racing._tracks.values() if track.created)
    assert len(track.textures) == 2, "one for each width of frames, not for each view"
    before = {side: [level.copy() for level in texture.levels] for side, texture in track.textures.items()}
    for _ in range(120):
        for env, driver in drivers.values():
            env.step(driver(env))
    assert min(env.tile_visited_count for env, _ in drivers.values()) > 20
    for side, levels in before.items():
        for level, shared in zip(levels, track.textures[side].levels, strict=True):
            np.testing.assert_array_equal(shared, level)


@pytest.mark.parametrize(("track", "options"), [(45, {}), (18, {}), (25, {"domain_randomize": True})])
def test_visited_tiles_brighten_no_texel(track: int, options: dict[str, Any]) -> None:
    """Not even a texel that a kerb or another darker tile has covered since."""
    env = FastCarRacing(view="playfield", **options)
    env.reset(seed=track)
    shared = next(reversed(car_racing._tracks.values())).textures[960]
    own = EpisodeTexture()
    own.begin(shared)
    for tile in range(len(env.road)):
        own.visit(tile, zooming=True)
    for level, before in zip(own._levels, shared.levels, strict=True):
        brighter = level.astype(int) - before
        assert brighter.max() <= 0, f"{(brighter > 0).any(axis=2).sum()} texels, by up to {brighter.max()}"
        assert (brighter < 0).any()
