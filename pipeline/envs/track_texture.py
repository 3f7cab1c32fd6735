"""CarRacing's ground as a texture: drawn once per track, then only rotated, moved and scaled for each frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from gymnasium.envs.box2d.car_racing import PLAYFIELD
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Side of the drawing in pixels. It is averaged down to the texture, so texels at an edge are partly road, partly grass.
# A pixel is a sixth of a world unit, and a kerb is 8 pixels wide.
_DRAWN_SIDE = 3840
_BLOCK = 480  # drawn pixels along each side of a block; blocks without road are copied from the empty ground
# OpenCV's polygons extend half a pixel beyond their outline; SDL's, on a screen that is three times finer, extend less.
# Road and kerbs are drawn narrower by the difference, in drawn pixels on each side.
_INSET = 0.3
# Mipmap levels, each half the size of the previous one, for the zoom in the first second, which starts 27 times as far.
_LEVELS = 6
# A level is used until its texels are smaller than the square root of a pixel's area by this factor, as a power of two.
_LEVEL_BIAS = 0.8
_SHIFT = 8  # fractional bits of the coordinates given to OpenCV


class Quad(NamedTuple):
    """A road tile or a kerb.

    Attributes:
        vertices: Vertices in world units, (4, 2) float64: left, right, right, left across the road.
        color: RGB colour.
    """

    vertices: NDArray[np.float64]
    color: Colour


class _Patch(NamedTuple):
    """Change of one level when a tile loses its tint: texels[rows, columns] -= amount."""

    rows: slice
    columns: slice
    amount: Pixels


class TrackTexture:
    """Ground of one track, shared by all episodes on it.

    A texel is RGB and an unused fourth byte: OpenCV warps four channels in half the time of three.

    Args:
        quads: Road tiles and kerbs in Gymnasium's drawing order.
        tiles: Indices of the quads that are tiles, in order.
        road, background, grass: RGB colours. A tile has the road's colour with a slight tint, which it loses when it is
            visited.
        side: Texels along each side of the finest level: 960 or 1920.
    """

    def __init__(
        self, quads: Sequence[Quad], tiles: Sequence[int], *, road: Colour, background: Colour, grass: Colour, side: int
    ) -> None:
        self.side = side
        self._oversampling = _DRAWN_SIDE // side
        self._tiles = [quads[index] for index in tiles]
        self._road = np.array(road)
        levels = [self._draw(quads, background, grass)]
        while len(levels) < _LEVELS:
            levels.append(_shrink(levels[-1], 2))
        self.levels = levels
        self._patches: dict[tuple[int, int], list[_Patch]] = {}

    def patches(self, tile: int, num_levels: int) -> list[_Patch]:
        """Changes when a tile is visited: one patch per level, finest first; empty for a tile without a tint."""
        key = (tile, num_levels)
        if key not in self._patches:
            quad = self._tiles[tile]
            tint = np.array(quad.color) - self._road
            self._patches[key] = self._make_patches(quad.vertices, tint, num_levels) if tint.any() else []
        return self._patches[key]

    def _draw(self, quads: Sequence[Quad], background: Colour, grass: Colour) -> Pixels:
        """Draw the finest level."""
        drawn, shrunk = _ground(background, grass, self._oversampling)
        finest = shrunk.copy()
        outlines = [_outline(quad.vertices) for quad in quads]
        crossing: dict[tuple[int, int], list[int]] = {}
        for index, outline in enumerate(outlines):
            left, top = (outline.min(axis=0) - 1).astype(int) // _BLOCK
            right, bottom = (outline.max(axis=0) + 1).astype(int) // _BLOCK
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    crossing.setdefault((row, column), []).append(index)
        texels = _BLOCK // self._oversampling
        for (row, column), indices in crossing.items():
            block = drawn[row * _BLOCK : (row + 1) * _BLOCK, column * _BLOCK : (column + 1) * _BLOCK].copy()
            for index in indices:
                _fill(block, outlines[index] - (column * _BLOCK, row * _BLOCK), quads[index].color)
            finest[row * texels : (row + 1) * texels, column * texels : (column + 1) * texels] = _shrink(
                block, self._oversampling
            )
        return finest

    def _make_patches(self, vertices: NDArray[np.float64], tint: NDArray[np.int_], num_levels: int) -> list[_Patch]:
        outline = _outline(vertices)
        block = self._oversampling * 2 ** (num_levels - 1)  # a whole texel of the coarsest level
        low = np.floor(outline.min(axis=0) / block).astype(int)
        high = np.floor(outline.max(axis=0) / block).astype(int) + 1
        width, height = (high - low) * block
        coverage = np.zeros((height, width), np.uint8)
        _fill(coverage, outline - low * block, 255)
        weights = np.append(tint / 255, 0)
        patches = []
        for level in range(num_levels):
            coverage = _shrink(coverage, 2 if level else self._oversampling)
            scale = 2 ** (num_levels - 1 - level)
            (left, top), (right, bottom) = (low * scale).tolist(), (high * scale).tolist()
            amount = (coverage[..., None] * weights + 0.5).astype(np.uint8)
            patches.append(_Patch(slice(top, bottom), slice(left, right), amount))
        return patches


class EpisodeTexture:
    """An episode's own copy of a track's texture; visited tiles lose their tint in this copy only."""

    def __init__(self) -> None:
        self._track: TrackTexture | None = None
        self._levels: list[Pixels] = []

    def begin(self, track: TrackTexture) -> None:
        """Copy the texture of a track."""
        if self._track is None or self._track.side != track.side:
            self._levels = [level.copy() for level in track.levels]
        else:
            for own, shared in zip(self._levels, track.levels, strict=True):
                np.copyto(own, shared)
        self._track = track

    def visit(self, tile: int, *, zooming: bool) -> None:
        """Remove a tile's tint.

        Args:
            tile: Index of the tile.
            zooming: Whether the first second's zoom is in progress; after it, only the finest level is visible and
                changed.
        """
        assert self._track is not None
        patches = self._track.patches(tile, _LEVELS if zooming else 1)
        for level, patch in zip(self._levels, patches, strict=False):
            texels = level[patch.rows, patch.columns]
            # Saturates at 0: a kerb or a darker tile may have been drawn over this one.
            cv2.subtract(texels, patch.amount, dst=texels)

    def draw(
        self,
        out: Pixels,
        *,
        position: tuple[float, float],
        angle: float,
        origin: tuple[float, float],
        pixel_size: tuple[float, float],
    ) -> None:
        """Draw the ground as the camera sees it.

        Args:
            out: Output image, (H, W, 4) uint8; all of it is written.
            position: Position of the camera in world units, (x, y).
            angle: Angle of the camera in radians.
            origin: Position of the camera in ``out`` in pixels, (x, y) from the upper left corner.
            pixel_size: Size of a pixel in world units, (width, height).
        """
        assert self._track is not None
        pixel_width, pixel_height = pixel_size
        unit = self._track.side / (2 * PLAYFIELD)
        texels_per_pixel = math.sqrt(pixel_width * pixel_height) * unit
        level = min(max(math.floor(math.log2(texels_per_pixel) + 1 - _LEVEL_BIAS), 0), _LEVELS - 1)
        unit /= 2**level
        cos, sin = math.cos(angle) * unit, math.sin(angle) * unit
        # A pixel one to the right is one width to the camera's right; one below is one height behind it.
        xx, xy = pixel_width * cos, pixel_height * sin
        yx, yy = pixel_width * sin, -pixel_height * cos
        x, y = origin[0] - 0.5, origin[1] - 0.5
        matrix = np.array(
            [
                [xx, xy, (position[0] + PLAYFIELD) * unit - 0.5 - xx * x - xy * y],
                [yx, yy, (position[1] + PLAYFIELD) * unit - 0.5 - yx * x - yy * y],
            ]
        )
        height, width = out.shape[:2]
        cv2.warpAffine(
            self._levels[level], matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )


# Only the last ground is kept: a run has one, unless colours are drawn at random.
_grounds: dict[tuple[Colour, Colour, int], tuple[Pixels, Pixels]] = {}


def _ground(background: Colour, grass: Colour, oversampling: int) -> tuple[Pixels, Pixels]:
    """Draw the playfield without a road; returns it as drawn, and shrunk to a texture's finest level."""
    key = (background, grass, oversampling)
    if key not in _grounds:
        pixels = np.zeros((_DRAWN_SIDE, _DRAWN_SIDE, 4), np.uint8)
        pixels[..., :3] = background
        patch = _DRAWN_SIDE // 40  # a patch of grass is 1/40 of the playfield, and so is the gap to the next
        for top in range(0, _DRAWN_SIDE, 2 * patch):
            for left in range(0, _DRAWN_SIDE, 2 * patch):
                pixels[top : top + patch, left : left + patch, :3] = grass
        _grounds.clear()
        _grounds[key] = pixels, _shrink(pixels, oversampling)
    return _grounds[key]


def _outline(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a quad's vertices to drawn pixels, with integers at pixel centres."""
    across = vertices[[1, 0, 3, 2]] - vertices
    # Gymnasium creates kerbs of zero width if two tiles turn by exactly the same angle.
    length = np.maximum(np.hypot(across[:, :1], across[:, 1:]), np.finfo(float).tiny)
    inward = across / length * _INSET
    outline: NDArray[np.float64] = (vertices + PLAYFIELD) * (_DRAWN_SIDE / (2 * PLAYFIELD)) + inward - 0.5
    return outline


def _fill(pixels: Pixels, outline: NDArray[np.float64], color: Colour | int) -> None:
    points = np.rint(outline * 2**_SHIFT).astype(np.int32)
    cv2.fillConvexPoly(pixels, points, color, shift=_SHIFT)


def _shrink(pixels: Pixels, factor: int) -> Pixels:
    height, width = pixels.shape[:2]
    return cv2.resize(pixels, (width // factor, height // factor), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
