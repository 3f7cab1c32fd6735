"""Named places between two writes, where a test can kill this process, as a power cut would, or freeze it."""

from __future__ import annotations

import os
import signal

# ``NAME`` or ``NAME@COUNT``: the process kills itself when it passes that place for the COUNT-th time. With the suffix
# ``:freeze`` the process stops there instead, until SIGCONT. VARIABLE is for the command's own process, WORKER_VARIABLE
# for each of its worker processes on Ray.
VARIABLE = "WORLD_MODELS_FAILPOINT"
WORKER_VARIABLE = "WORLD_MODELS_WORKER_FAILPOINT"

FAILPOINTS = (
    "session-begun",  # the lease is taken, nothing else is written
    "config-written",
    "stage-begun",  # the stage's inputs are recorded
    "object-half-written",  # half of an object's bytes are in a temporary file
    "data-written",  # an object's bytes are complete, no record commits them
    "record-created",
    "checkpoint-data-written",
    "checkpoint-recorded",  # older checkpoints are not pruned yet
    "checkpoint-half-removed",  # a pruned checkpoint's record is gone, its bytes are not
    "generation-scored",  # all returns are known, CMA-ES is not updated
    "search-updated",
    "stage-done",  # everything but the seal
    "stage-superseded",  # an outgrown manifest is archived, and not yet removed
    "stage-sealed",
)

_armed, _left, _signal = "", 0, signal.SIGKILL


def arm_from_environment(variable: str) -> None:
    """Arm the failpoint that the environment names, and remove the variable, so that no child process inherits it.

    Args:
        variable: Name of the environment variable: ``VARIABLE`` or ``WORKER_VARIABLE``.
    """
    global _armed, _left, _signal
    place, _, how = os.environ.pop(variable, "").partition(":")
    _armed, _, count = place.partition("@")
    _left = int(count or 1)
    _signal = signal.SIGSTOP if how == "freeze" else signal.SIGKILL


def failpoint(name: str) -> None:
    """Pass a named place: kill or freeze this process if a test armed it."""
    global _left
    assert name in FAILPOINTS, name
    if name != _armed:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), _signal)
