"""Names of the arrays that stand in many signatures. The shapes stand in the docstrings there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
"""Numbers of networks: inputs, outputs, states and weights."""

Vector = NDArray[np.float32]
"""One action, (A,) float32."""

Frames = NDArray[np.uint8]
"""One frame of the agent or several, (..., 64, 64, 3) uint8 RGB."""

Picture = NDArray[np.uint8]
"""A picture of any size, (H, W, 3) uint8 RGB."""
