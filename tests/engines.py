"""Engines of TakeCover: their processes, and their files of shared memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_HANGS_S = 120.0


def shared_memory(engine: psutil.Process) -> list[Path]:
    """The files of an engine's shared memory."""
    arguments = engine.cmdline()
    return list(Path("/dev/shm").glob(f"ViZDoom*{arguments[arguments.index('+viz_instance_id') + 1]}"))


def engines_below(pid: int) -> list[psutil.Process]:
    """The engines that a process has started."""
    return [child for child in psutil.Process(pid).children(recursive=True) if "vizdoom" in child.name()]


def wait_until_gone(engines: Sequence[psutil.Process], memory: Sequence[Path]) -> None:
    """Wait until the engines have ended and their files are removed, which is soon unless something hangs."""
    deadline = time.monotonic() + _HANGS_S
    while any(engine.is_running() for engine in engines) or any(path.exists() for path in memory):
        assert time.monotonic() < deadline, (engines, memory)
        time.sleep(0.05)
