"""Layout of a film's pictures: the scene on the left, and beside it tiles, from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from pipeline.base.arrays import Picture


def fitted(scene: Picture, size: tuple[int, int]) -> Image.Image:
    """Resize a scene to fill the width or the height of a picture, with black bars beside it.

    Args:
        scene: Scene, (H, W, 3) uint8 RGB.
        size: Width and height of the picture in pixels.
    """
    height, width = scene.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = round(width * scale), round(height * scale)
    resized = Image.fromarray(scene).resize(inner, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    picture = Image.new("RGB", size)
    picture.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return picture


def composed(scene: Image.Image, tiles: Sequence[Picture]) -> Image.Image:
    """Put tiles beside a scene. Together they are as high as it.

    Args:
        scene: Scene.
        tiles: Square pictures, (N, N, 3) uint8 RGB each.
    """
    side = scene.height // len(tiles)
    picture = Image.new("RGB", (scene.width + side, scene.height))
    picture.paste(scene, (0, 0))
    for row, tile in enumerate(tiles):
        enlarged = Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST)
        picture.paste(enlarged, (scene.width, row * side))
    return picture
