"""Waiting for answers of actors and tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

LISTEN_S = 1.0
WARN_EVERY_S = 60.0  # interval of the warnings while something is waited for
# Up to this number of references, answers are taken one by one: looking for more of them takes as long as reading one.
_FEW = 32


def listen(waitables: Sequence[Any]) -> tuple[Any, float]:
    """Wait a moment for an answer.

    Returns:
        The first waitable that has an answer, or None, and the seconds waited. They are ``LISTEN_S`` at most, also if
        the driver itself was stopped meanwhile (Ctrl-Z).
    """
    began = time.monotonic()
    ready, _ = ray.wait(list(waitables), num_returns=1, timeout=LISTEN_S, fetch_local=False)
    return next(iter(ready), None), min(time.monotonic() - began, LISTEN_S)


def listen_to_all(waitables: list[Any]) -> dict[Any, Any]:
    """Wait a moment for answers.

    Args:
        waitables: References of the expected answers, including those of actors that still wait for a node.

    Returns:
        Answer of each ready reference; a ``RayError`` is returned, not raised.
    """
    if not waitables:
        time.sleep(LISTEN_S)
        return {}
    ready = ray.wait(waitables, num_returns=1, timeout=LISTEN_S, fetch_local=False)[0]
    if ready and len(waitables) > _FEW:
        return ready_answers(waitables)
    return _answers(ready)


def ready_answers(waitables: list[Any]) -> dict[Any, Any]:
    """Answers that are ready now; a ``RayError`` is returned, not raised."""
    if not waitables:
        return {}
    ready = ray.wait(waitables, num_returns=len(waitables), timeout=0, fetch_local=False)[0]
    return _answers(ready)


def _answers(ready: list[Any]) -> dict[Any, Any]:
    try:  # all at once: one after the other is slower
        return dict(zip(ready, ray.get(ready), strict=True))
    except RayError:
        return {reference: _answer(reference) for reference in ready}


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        return error


def has_answer(waitable: Any) -> bool:
    """Whether an answer is ready now."""
    return bool(ray.wait([waitable], timeout=0, fetch_local=False)[0])
