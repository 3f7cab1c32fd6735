"""Named places between two writes, where a test can have this process killed as a power cut would."""

from __future__ import annotations

import os
import signal

# ``NAME`` or ``NAME@COUNT``: the process kills itself when it passes that place for the COUNT-th time. Taken out of the
# environment, so that a driver's workers do not inherit it.
VARIABLE = "WORLD_MODELS_FAILPOINT"

FAILPOINTS = (
    "sitting-begun",  # the lease is taken, nothing else is written
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

_armed, _, _count = os.environ.pop(VARIABLE, "").partition("@")
_left = int(_count or 1)


def failpoint(name: str) -> None:
    """Pass a named place: SIGKILL to this process where a test asked for it."""
    global _left
    if name != _armed:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
