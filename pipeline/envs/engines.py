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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

import psutil

from pipeline.envs import reaper


@contextmanager
def starting_engines() -> Iterator[None]:
    """Guard the engines that are started inside, which write their files into a temporary folder.

    It is also their working directory, by which the reaper finds one whose worker is killed before it is registered.
    """
    _send_to_reaper({"folder": str(_folder())})
    before = set(_children())
    here = Path.cwd()
    os.chdir(_folder())
    try:
        yield
    finally:
        os.chdir(here)
        for child in set(_children()) - before:
            _register(child)


def _register(engine: psutil.Process) -> None:
    try:
        arguments = engine.cmdline()
    except psutil.Error:  # it has ended already
        return
    shared = reaper.shared_memory(arguments)
    if shared is not None:
        _send_to_reaper({"pid": engine.pid, "started": reaper.started(engine.pid), "shared_memory": shared})


def _send_to_reaper(entry: Mapping[str, str | int | None]) -> None:
    """Send an entry to the reaper; if it was killed, to a new one, which finds earlier engines by their folder."""
    line = json.dumps(entry).encode() + b"\n"
    try:
        _reaper().write(line)
    except BrokenPipeError:
        _reaper.cache_clear()
        _reaper().write(line)


def _children() -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process().children()
    return children


@cache
def _reaper() -> IO[bytes]:
    """Pipe to the process that ends this process's engines."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", reaper.__file__, "detached"],
        stdin=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.wait()  # only until it has detached itself
    process.stdin.write(json.dumps({"folder": str(_folder())}).encode() + b"\n")
    return process.stdin


@cache
def _folder() -> Path:
    """Folder of this process's engines; the reaper removes it once they have ended."""
    return Path(tempfile.mkdtemp(prefix="world-models-engines-"))
