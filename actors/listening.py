"""Waiting for what actors and tasks have to say, and how their loss shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

# How the loss of a worker shows; out of memory is its own class, also for actors.
LOST = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)

LISTEN_S = 1.0
SAY_EVERY_S = 60.0  # what is waited for
# With many workers, answers are taken together: to look who of 256 has one takes as long as to take it. Jobs that lie
# before the workers keep them busy meanwhile.
_MANY = 32
_GATHER_S = 0.05
_GATHER_PATIENTLY_S = 0.2
# Answers a second that a driver is to take in, about, however many workers there are: a hundredth of its time.
_ANSWERS_PER_S = 25


def listen(waitables: Sequence[Any]) -> tuple[Any, float]:
    """Wait a moment for one of them to have something to say: that one or None, and how long was waited.

    A driver that was itself stopped meanwhile (Ctrl-Z) has listened no longer than it meant to.
    """
    began = time.monotonic()
    ready, _ = ray.wait(list(waitables), num_returns=1, timeout=LISTEN_S, fetch_local=False)
    return next(iter(ready), None), min(time.monotonic() - began, LISTEN_S)


def listen_to_all(waitables: list[Any], workers: int, *, patient: bool) -> dict[Any, Any]:
    """Wait a moment for any of them to have something to say.

    Args:
        waitables: what actors will answer by, those too that wait for a node and will be silent for long.
        workers: how many of them are ready.
        patient: whether there is no hurry with many of them.

    Returns:
        What each has to say that does; the error itself where it is one.
    """
    if not waitables:
        time.sleep(LISTEN_S)
        return {}
    if workers > _MANY:
        time.sleep(_GATHER_PATIENTLY_S if patient else _GATHER_S)
    elif not ray.wait(waitables, num_returns=1, timeout=LISTEN_S, fetch_local=False)[0]:
        return {}
    ready = ray.wait(waitables, num_returns=len(waitables), timeout=0, fetch_local=False)[0]
    try:  # all at once: Ray takes longer over one after the other
        return dict(zip(ready, ray.get(ready), strict=True))
    except RayError:
        return {reference: _answer(reference) for reference in ready}


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        return error


def linger_s(workers: int, timeout_s: float) -> float:
    """Seconds that a worker with jobs ahead may keep results, so that many workers do not keep the driver busy.

    Args:
        workers: that there are.
        timeout_s: after so many without a result a worker hangs.
    """
    return min(workers / _ANSWERS_PER_S, timeout_s / 4) if workers > _MANY else 0.0


def has_answer(waitable: Any) -> bool:
    return bool(ray.wait([waitable], timeout=0, fetch_local=False)[0])


def silence(timeout_s: float) -> str:
    """What is said of a worker that hangs."""
    return (
        f"its worker hung: it gave no sign of life for {timeout_s:g} s and was killed "
        "(execution.timeout_s: raise it if a job takes longer)"
    )


def first_line(error: RayError) -> str:
    """Of what Ray says of an error: what follows are hints and logs."""
    return str(error).strip().splitlines()[0]
