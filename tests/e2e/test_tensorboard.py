"""A TensorBoard that stays open while a run is stopped and resumed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from pipeline.storage.local import LocalStore
from pipeline.storage.metrics import MetricsLog

# Reached only if TensorBoard hangs.
LIMIT_S = 240

Points = list[tuple[int, float]]


@contextmanager
def tensorboard(folder: Path, *flags: str) -> Iterator[Callable[[], Points]]:
    """Start TensorBoard on a free port; gives a function that reads its points of ``stage/loss``."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    command += ["--reload_interval", "1", *flags]
    log = folder.parent / "tensorboard.log"
    with log.open("w") as said, subprocess.Popen(command, stderr=said, stdout=said) as process:
        try:
            ends = time.monotonic() + LIMIT_S
            while (found := re.search(r"http://127[^ /]+", log.read_text())) is None:
                assert process.poll() is None and time.monotonic() < ends, f"no TensorBoard came up: {log.read_text()}"
                time.sleep(0.1)
            address = found[0]

            def ask(path: str) -> Any:
                with urlopen(f"{address}/data/plugin/scalars/{path}", timeout=60) as answer:
                    return json.load(answer)

            def points() -> Points:
                if "stage/loss" not in ask("tags").get("stage/tensorboard", {}):
                    return []
                return [(step, value) for _, step, value in ask("scalars?run=stage/tensorboard&tag=stage/loss")]

            yield points
        finally:
            process.terminate()


def wait_for(points: Callable[[], Points], expected: Points) -> None:
    """Wait until TensorBoard shows exactly these points; it reads its files once a second."""
    ends = time.monotonic() + LIMIT_S
    while (shown := points()) != expected:
        assert time.monotonic() < ends, f"TensorBoard shows {shown} where {expected} was written"
        time.sleep(0.1)


@pytest.mark.parametrize("flags", [["--load_fast=true"], ["--load_fast=false"]], ids=["data server", "python"])
def test_open_tensorboard_shows_points_after_a_resume(tmp_path: Path, flags: list[str]) -> None:
    store = LocalStore(tmp_path / "run")
    with MetricsLog(store, "stage") as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": 0.5 * step})
    with tensorboard(store.root, *flags) as points:
        wait_for(points, [(1, 0.5), (2, 1.0), (3, 1.5)])
        # The checkpoint was of step 2: step 3 is computed again.
        for session in (1, 2):
            with MetricsLog(store, "stage", log.rows[:2]) as resumed:
                resumed.log(3, {"loss": 32.0 * session})
            wait_for(points, [(1, 0.5), (2, 1.0), (3, 32.0 * session)])
        resumed.log(4, {"loss": 128.0})
        resumed.flush()
        wait_for(points, [(1, 0.5), (2, 1.0), (3, 64.0), (4, 128.0)])
