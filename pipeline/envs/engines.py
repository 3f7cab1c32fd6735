"""Game engines that run as processes of their own: none outlives the process that started it.

ViZDoom's engines ignore SIGTERM, and keep running with their shared memory when their parent is killed
(openai/gym-doom#2). A small process next to each worker ends them, see ``pipeline/envs/reaper.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

import psutil

from pipeline.envs import reaper

_INSTANCE = "+viz_instance_id"  # argument of an engine, before the ID that its shared memory is named after


@contextmanager
def starting_engines() -> Iterator[None]:
    """Guard the engines that are started inside, which write their files into a temporary folder."""
    registry = _reaper()
    before = set(_children())
    here = Path.cwd()
    os.chdir(_folder())
    try:
        yield
    finally:
        os.chdir(here)
        for child in set(_children()) - before:
            _register(registry, child)


def _register(registry: IO[str], engine: psutil.Process) -> None:
    try:
        arguments = engine.cmdline()
    except psutil.Error:  # it has ended already
        return
    if _INSTANCE in arguments:
        shared = f"ViZDoom*{arguments[arguments.index(_INSTANCE) + 1]}"
        entry = {"pid": engine.pid, "started": reaper.started(engine.pid), "shared_memory": shared}
        print(json.dumps(entry), file=registry, flush=True)


def _children() -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process().children()
    return children


@cache
def _reaper() -> IO[str]:
    """Pipe to the process that ends this process's engines."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", reaper.__file__, "detached"],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.wait()  # only until it has detached itself
    print(json.dumps({"folder": str(_folder())}), file=process.stdin, flush=True)
    return process.stdin


@cache
def _folder() -> Path:
    """Folder of this process's engines; the reaper removes it once they have ended."""
    return Path(tempfile.mkdtemp(prefix="world-models-engines-"))
