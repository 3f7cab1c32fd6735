"""Shape of the frames that all models take as input."""

from __future__ import annotations

from math import prod

FRAME_SHAPE = (64, 64, 3)
FRAME_SIZE = prod(FRAME_SHAPE)
