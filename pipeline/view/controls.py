"""Controls for people, derived from the actions of an environment."""

from __future__ import annotations

import re
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
# Names of a choice that does nothing; MiniGrid's "done" has no effect.
_REST = ("noop", "nothing", "do nothing", "none", "idle", "stay", "done")
# Keys of choices by the last part of their names, as in LEFT and MOVE_LEFT; names of several directions have none.
_ARROWS = {
    "left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp", "forward": "ArrowUp", "down": "ArrowDown",
    "backward": "ArrowDown",
}  # fmt: skip
_DIRECTION = re.compile(rf"(?:\w+_)?({'|'.join(_ARROWS)})", re.IGNORECASE)


def describe(actions: Actions, env_id: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the controls, as JSON for the page.

    Args:
        actions: Actions of the environment.
        env_id: ID of the environment.
        names: Names of the choices of a ``Discrete`` space, if the environment has any.

    Returns:
        ``kind`` and its parts: ``axes`` with name, bounds, value at rest and keys; ``blocks`` of choices with their
        names, index at rest, and indices by key; or ``switches`` with their names. A block has its values side by side
        in an action, see ``ChoiceActions``.
    """
    space = actions.space
    if isinstance(space, spaces.Discrete):
        named = list(names) if len(names) == space.n else []
        return {"kind": "choices", "blocks": [_block(int(space.n), int(space.start), named)]}
    if isinstance(space, spaces.MultiDiscrete):
        counts, starts = space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist()
        return {"kind": "choices", "blocks": [_block(*block, []) for block in zip(counts, starts, strict=True)]}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "switches", "switches": _numbers(actions.size, 0)}
    drives = env_id == CAR_RACING and actions.size == len(_CAR)
    return {"kind": "axes", "axes": [_axis(actions, index, drives) for index in range(actions.size)]}


def at_rest(actions: Actions, names: Sequence[str] = ()) -> Vector:
    """Action of a person who touches nothing, (A,) float32; arguments as in ``describe``."""
    blocks = describe(actions, "", names).get("blocks")
    if blocks is None:
        return checked(actions, np.clip(0.0, actions.low, actions.high).tolist())
    return np.concatenate([np.eye(len(block["names"]), dtype=np.float32)[block["rest"]] for block in blocks])


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


def _numbers(count: int, start: int) -> list[str]:
    return [str(start + index) for index in range(count)]


def _block(count: int, start: int, named: list[str]) -> dict[str, Any]:
    """A block of choices; without names, three of them are taken for less, nothing and more."""
    keys: dict[str, int] = {}
    for index, name in enumerate(named):
        if found := _DIRECTION.fullmatch(name):
            keys.setdefault(_ARROWS[found[1].lower()], index)
    if not named and count <= 3:
        keys = {"ArrowLeft": 0, "ArrowRight": count - 1}
    resting = [index for index, name in enumerate(named) if name.lower() in _REST]
    rest = resting[0] if resting else 1 if count == 3 else 0
    return {"names": named or _numbers(count, start), "rest": rest, "keys": keys}


def _axis(actions: Actions, index: int, drives: bool) -> dict[str, Any]:
    low, high = float(actions.low[index]), float(actions.high[index])
    name, minus, plus = f"axis {index + 1}", None, None
    if drives:
        name, minus, plus = _CAR[index]
    elif index < len(_KEYS):
        minus, plus = _KEYS[index]
    return {"name": name, "low": low, "high": high, "rest": min(max(0.0, low), high), "minus": minus, "plus": plus}
