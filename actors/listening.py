"""Waiting for answers of actors and tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

LISTEN_S = 1.0
WARN_EVERY_S = 60.0  # interval of the warnings while something is waited for
# With many workers, answers are gathered: checking which of 256 workers answered takes as long as reading an answer.
# Meanwhile the workers are busy with the jobs ahead of them.
_MANY = 32
_GATHER_S = 0.05
_GATHER_PATIENTLY_S = 0.2
# Approximate number of answers per second that a driver reads with any number of workers: 1% of its time.
_ANSWERS_PER_S = 25


def listen(waitables: Sequence[Any]) -> tuple[Any, float]:
    """Wait a moment for an answer.

    Returns:
        The first waitable that has an answer, or None, and the seconds waited. They are ``LISTEN_S`` at most, also if
        the driver itself was stopped meanwhile (Ctrl-Z).
    """
    began = time.monotonic()
    ready, _ = ray.wait(list(waitables), num_returns=1, timeout=LISTEN_S, fetch_local=False)
    return next(iter(ready), None), min(time.monotonic() - began, LISTEN_S)


def listen_to_all(waitables: list[Any], workers: int, *, patient: bool) -> dict[Any, Any]:
    """Wait a moment for answers.

    Args:
        waitables: References of the expected answers, including those of actors that still wait for a node.
        workers: Number of workers that are ready.
        patient: Whether the answers of many workers may be gathered for longer.

    Returns:
        Answer of each ready reference; a ``RayError`` is returned, not raised.
    """
    if not waitables:
        time.sleep(LISTEN_S)
        return {}
    if workers > _MANY:
        time.sleep(_GATHER_PATIENTLY_S if patient else _GATHER_S)
    elif not ray.wait(waitables, num_returns=1, timeout=LISTEN_S, fetch_local=False)[0]:
        return {}
    ready = ray.wait(waitables, num_returns=len(waitables), timeout=0, fetch_local=False)[0]
    try:  # all at once: one after the other is slower
        return dict(zip(ready, ray.get(ready), strict=True))
    except RayError:
        return {reference: _answer(reference) for reference in ready}


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        return error


def batching_delay_s(workers: int, timeout_s: float) -> float:
    """Seconds that a worker with jobs ahead may hold back results, so that many workers do not overload the driver.

    Args:
        workers: Number of workers.
        timeout_s: Seconds of silence after which a worker counts as hung.
    """
    return min(workers / _ANSWERS_PER_S, timeout_s / 4) if workers > _MANY else 0.0


def has_answer(waitable: Any) -> bool:
    """Whether an answer is ready now."""
    return bool(ray.wait([waitable], timeout=0, fetch_local=False)[0])
