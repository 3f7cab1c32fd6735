"""FastCarRacing's frames are Gymnasium's but for a little, in every part; and frames that are not would be noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.envs import car_racing, car_sprites, track_texture
from pipeline.envs.car_racing import FastCarRacing, forget_tracks
from pipeline.envs.car_sprites import CarSprites, StatusBar
from pipeline.envs.track_texture import EpisodeTexture, TrackTexture
from tests.driving import GoodDriver, RandomDriver, straight_on
from tests.frames import CHECKS, PARTS, Drive, Frames, drive_again, record, rejecting

VIEWS = ("playfield", "full", "observation")
DRIVES: dict[str, Callable[[], Drive]] = {
    "well": lambda: record(3, GoodDriver(), 330),
    "at random": lambda: record(7, RandomDriver(1), 240),
    "off the playfield": lambda: record(11, straight_on, 300),
    "in random colours": lambda: record(5, GoodDriver(), 330, domain_randomize=True),
    "on a road of (2, 151, 69)": lambda: record(53, GoodDriver(), 240, domain_randomize=True),
}


@pytest.fixture(scope="module")
def drives() -> dict[str, Drive]:
    """Recorded once: Gymnasium draws some 1,500 pictures."""
    return {name: drive() for name, drive in DRIVES.items()}


@pytest.fixture(scope="module", params=[(name, view) for name in DRIVES for view in VIEWS], ids=" in view ".join)
def frames(request: pytest.FixtureRequest, drives: dict[str, Drive]) -> Frames:
    name, view = request.param
    return drive_again(FastCarRacing(view, **drives[name].options), drives[name], view)


@pytest.mark.parametrize("check", CHECKS)
def test_frames_are_gymnasiums_but_for_a_little(frames: Frames, check: str) -> None:
    CHECKS[check](frames)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["well", "in random colours"])
def test_good_drives_see_every_part(drives: dict[str, Drive], view: str, name: str) -> None:
    parts = Frames(drives[name], view, drive_again(FastCarRacing(view, **drives[name].options), drives[name], view).frames)
    seen = {part: parts.seen(part) for part in PARTS}
    assert min(seen[part] for part in PARTS if part != "status bar" or view != "playfield") > 100, seen


def test_every_view_has_its_shape_and_its_bar(drives: dict[str, Drive]) -> None:
    shapes = {"playfield": (64, 64, 3), "full": (64, 64, 3), "observation": (96, 96, 3)}
    for view, shape in shapes.items():
        env = FastCarRacing(view)
        frame, _ = env.reset(seed=3)
        assert frame.shape == env.observation_space.shape == shape
        assert frame.dtype == np.uint8
        assert (frame[-1, -10:].max() == 0) == (view != "playfield"), "black below the gauges"


# ---- mutants: frames with a fault, and the checks that notice it

Mutant = Callable[[pytest.MonkeyPatch], type[FastCarRacing]]


def changed(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Mutant:
    """Whole frames are changed."""

    class Changed(FastCarRacing):
        def _render(self, mode: str) -> Any:
            drawn = super()._render(mode)
            return np.ascontiguousarray(change(drawn)) if mode == "state_pixels" else drawn

    return lambda patch: Changed


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Mutant:
    """A method is replaced by what is made of it."""

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


def a_dark_line(original: Any) -> Any:
    """Between two rows of blocks; of a third of the tint that a road's tile may have."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        side = self.side
        for place in range(side // 8, side, side // 8):
            for lines in (self.levels[0][place : place + 2], self.levels[0][:, place : place + 2]):
                np.subtract(lines, np.minimum(lines, 15), out=lines)

    return init


def zoomed_in(original: Any) -> Any:
    def draw(self: Any, out: Any, *, pixel_size: tuple[float, float], **kwargs: Any) -> None:
        width, height = pixel_size
        full = 1000 / out.shape[1] / (2.7 * 6)
        original(self, out, pixel_size=(full, full * height / width), **kwargs)

    return draw


def nothing(original: Any) -> Any:
    return lambda self, *args, **kwargs: None


def blank(original: Any) -> Any:
    return lambda self, *args, **kwargs: np.zeros_like(original(self, *args, **kwargs))


def a_shared_texture(patch: pytest.MonkeyPatch) -> type[FastCarRacing]:
    def begin(self: EpisodeTexture, track: TrackTexture) -> None:
        self._track, self._levels = track, track.levels

    patch.setattr(EpisodeTexture, "begin", begin)
    return FastCarRacing


# With the checks that reject each; without "status bar" where the view has none.
MUTANTS: dict[str, tuple[Mutant, set[str]]] = {
    "no wheels": (replaced(CarSprites, "_draw_wheel", blank), {"wheels"}),
    "no car": (replaced(CarSprites, "draw", nothing), {"wheels", "hull"}),
    "no kerbs": (replaced(TrackTexture, "__init__", no_kerbs), {"kerbs"}),
    "a row down": (changed(lambda frame: np.roll(frame, 1, axis=0)), {"hull", "kerbs", "status bar"}),
    "a row up": (changed(lambda frame: np.roll(frame, -1, axis=0)), {"hull", "kerbs", "status bar"}),
    "a column right": (changed(lambda frame: np.roll(frame, 1, axis=1)), {"whole frames", "hull", "kerbs"}),
    "a column left": (changed(lambda frame: np.roll(frame, -1, axis=1)), {"whole frames", "hull", "kerbs"}),
    "mirrored": (changed(lambda frame: frame[:, ::-1]), {"whole frames", "kerbs"}),
    "colours swapped": (changed(lambda frame: frame[..., ::-1]), {"hull", "kerbs", "status bar"}),
    "visited tiles left": (replaced(EpisodeTexture, "visit", nothing), {"tints"}),
    "all tiles as if visited": (replaced(TrackTexture, "__init__", no_tints), {"tints"}),
    "no zoom": (replaced(EpisodeTexture, "draw", zoomed_in), {"whole frames"}),
    "seams": (replaced(TrackTexture, "__init__", a_dark_line), {"seams"}),
    "no gauges": (replaced(StatusBar, "_draw_gauge", blank), {"status bar"}),
    "no return": (replaced(StatusBar, "_draw_text", blank), {"status bar"}),
    "no status bar": (replaced(StatusBar, "draw", nothing), {"status bar"}),
}  # fmt: skip


@pytest.fixture
def mutable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing that was drawn before is used, and nothing that is drawn here afterwards."""

    def forget() -> None:
        forget_tracks()
        car_sprites.car_sprites.cache_clear()
        car_sprites.status_bar.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_faulty_frames_are_noticed(drives: dict[str, Drive], mutable: Any, mutant: str, view: str) -> None:
    drive = drives["well"].until(240)
    mutate, checks = MUTANTS[mutant]
    if view == "playfield":
        checks = checks - {"status bar"}
    found = rejecting(drive_again(mutate(mutable)(view), drive, view))
    assert checks <= set(found), found


def test_a_sound_environment_passes_where_the_faulty_ones_do_not(drives: dict[str, Drive], mutable: Any) -> None:
    for view in VIEWS:
        assert rejecting(drive_again(FastCarRacing(view), drives["well"].until(240), view)) == {}
