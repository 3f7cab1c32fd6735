"""Shape of the frames that all models take as input."""

from __future__ import annotations

FRAME_SHAPE = (64, 64, 3)
FRAME_SIZE = 64 * 64 * 3
