"""Frames from images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.base.arrays import Picture
from pipeline.data.frames import FRAME_SHAPE

MIN_SIDE = 32  # smaller arrays are codes of cells rather than pixels, such as MiniGrid's (7, 7, 3)


def is_image(shape: Sequence[int], dtype: Any) -> bool:
    """Whether an array of this shape is an image: uint8, (H, W), (H, W, 1) or (H, W, 3), or with the channels first."""
    if dtype != np.uint8 or len(shape) not in (2, 3):
        return False
    if len(shape) == 3:
        if shape[2] in (1, 3):
            shape = shape[:2]
        elif shape[0] in (1, 3):
            shape = shape[1:]
        else:
            return False
    return min(shape) >= MIN_SIDE


def to_rgb(image: NDArray[Any]) -> Picture:
    """Convert an image of one or three channels, first or last, to (H, W, 3) uint8 RGB."""
    if image.ndim == 3 and image.shape[2] not in (1, 3) and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, 2)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise TypeError(f"it returned an image {image.shape} {image.dtype}; (H, W, 3) uint8 was expected")
    return np.ascontiguousarray(image)


def to_frame(image: Picture, crop: Sequence[int] | None) -> Picture:
    """Crop an image and reduce it to a frame by area averaging.

    Args:
        image: Image, (H, W, 3) uint8.
        crop: First row, row after the last one, first column, column after the last one; None for the whole image.

    Returns:
        Frame, (64, 64, 3) uint8.

    Raises:
        ValueError: The image is smaller than the crop.
    """
    if crop is not None:
        top, bottom, left, right = crop
        if bottom > image.shape[0] or right > image.shape[1]:
            raise ValueError(f"env.crop {list(crop)} does not fit into its image of {image.shape[:2]} rows and columns")
        image = image[top:bottom, left:right]
    height, width = FRAME_SHAPE[:2]
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
