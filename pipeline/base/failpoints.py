"""Named places between two writes, where a test can have this process killed as a power cut would, or frozen."""

from __future__ import annotations

import os
import signal

# ``NAME`` or ``NAME@COUNT``: the process kills itself when it passes that place for the COUNT-th time. With ``:freeze``
# behind it the process stops there instead, until SIGCONT. VARIABLE is for the command's own process, WORKER_VARIABLE
# for each process on Ray that works for it.
VARIABLE = "WORLD_MODELS_FAILPOINT"
WORKER_VARIABLE = "WORLD_MODELS_WORKER_FAILPOINT"

FAILPOINTS = (
    "session-begun",  # the lease is taken, nothing else is written
    "config-written",
    "stage-begun",  # what a stage is made from is written down
    "object-half-written",  # half of an object's bytes are in a temporary file
    "data-written",  # an object's bytes are there, no record commits them
    "record-created",
    "checkpoint-data-written",
    "checkpoint-recorded",  # older checkpoints are not pruned yet
    "checkpoint-half-removed",  # a pruned checkpoint's record is gone, its bytes are not
    "generation-driven",  # all returns are there, CMA-ES has not been told
    "generation-told",
    "stage-done",  # everything but the seal
    "stage-superseded",  # an outgrown manifest is kept beside, and in its place still
    "stage-sealed",
)

_armed, _left, _signal = "", 0, signal.SIGKILL


def arm_from_environment(variable: str) -> None:
    """Arm the failpoint that the environment names, and take it out, so that no further process inherits it.

    Args:
        variable: ``VARIABLE`` or ``WORKER_VARIABLE``.
    """
    global _armed, _left, _signal
    place, _, how = os.environ.pop(variable, "").partition(":")
    _armed, _, count = place.partition("@")
    _left = int(count or 1)
    _signal = signal.SIGSTOP if how == "freeze" else signal.SIGKILL


def failpoint(name: str) -> None:
    """Pass a named place: the end of this process, or a halt, where a test asked for it."""
    global _left
    if name != _armed:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), _signal)
