"""Controls for people, derived from the actions of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from pipeline.base.arrays import Vector
from pipeline.envs.actions import Actions
from pipeline.envs.registry import CAR_RACING

# Keys of an axis for its low and its high end, as browsers name them; further axes have a slider only.
_KEYS = (("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("KeyA", "KeyD"), ("KeyS", "KeyW"))
_CAR = (
    ("steering", "ArrowLeft", "ArrowRight"),
    ("gas", None, "ArrowUp"),
    ("brake", None, "ArrowDown"),
)


def describe(actions: Actions, env_id: str) -> dict[str, Any]:
    """Describe the controls, as JSON for the page.

    Args:
        actions: Actions of the environment.
        env_id: ID of the environment.

    Returns:
        ``kind`` and its parts: ``axes`` with name, bounds, value at rest and keys; ``blocks`` of choices with their
        names; or ``switches`` with theirs. A block has its values side by side in an action, see ``ChoiceActions``.
    """
    space = actions.space
    if isinstance(space, spaces.Discrete):
        return {"kind": "choices", "blocks": [_names(int(space.n), int(space.start))]}
    if isinstance(space, spaces.MultiDiscrete):
        counts, starts = space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist()
        return {"kind": "choices", "blocks": [_names(*block) for block in zip(counts, starts, strict=True)]}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "switches", "switches": _names(actions.size, 0)}
    drives = env_id == CAR_RACING and actions.size == len(_CAR)
    return {"kind": "axes", "axes": [_axis(actions, index, drives) for index in range(actions.size)]}


def at_rest(actions: Actions) -> Vector:
    """Action of a person who touches nothing, (A,) float32."""
    return checked(actions, np.clip(0.0, actions.low, actions.high).tolist())


def checked(actions: Actions, values: Sequence[float]) -> Vector:
    """Action of a person as M sees it, within the bounds.

    Args:
        actions: Actions of the environment.
        values: Numbers from the page, one for each of the action.

    Raises:
        ValueError: There are not as many numbers as the action has.
    """
    if len(values) != actions.size:
        raise ValueError(f"an action of {len(values)} numbers: expected {actions.size}")
    vector = np.clip(np.asarray(values, np.float32), actions.low, actions.high)
    # A choice is one of a block, and a switch is on or off, regardless of what the page sent.
    return actions.vector(actions.native(vector.round())) if actions.discrete else vector


def value_of(actions: Actions, vector: Vector) -> Any:
    """Value of the action space, which ``Actions.vector`` converts to the same action."""
    return actions.native(vector) if actions.discrete else vector


def _names(count: int, start: int) -> list[str]:
    return [str(start + index) for index in range(count)]


def _axis(actions: Actions, index: int, drives: bool) -> dict[str, Any]:
    low, high = float(actions.low[index]), float(actions.high[index])
    name, minus, plus = f"axis {index + 1}", None, None
    if drives:
        name, minus, plus = _CAR[index]
    elif index < len(_KEYS):
        minus, plus = _KEYS[index]
    return {"name": name, "low": low, "high": high, "rest": min(max(0.0, low), high), "minus": minus, "plus": plus}
