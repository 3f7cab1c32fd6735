"""The command in a fork of a process that has imported everything: like a new process, but faster.

Importing torch, Ray, OpenVINO and the rest takes longer than most of these commands.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

# The imports of a whole run on Ray and in a bucket. pyarrow imports pandas.
_PRELOADED = (
    "actors.executor", "actors.worker", "boto3", "Box2D", "cma", "cluster.submit", "cv2", "gymnasium.envs.box2d",
    "matplotlib.pyplot", "matplotlib.backends.backend_svg", "pandas", "pipeline.cli.main",
    "pipeline.models.openvino_dream", "pipeline.models.openvino_forward", "pipeline.reporting.page", "pipeline.run",
    "pipeline.storage.session_notes", "pipeline.cli.status_text", "pipeline.storage.maintenance", "pipeline.storage.s3",
    "pipeline.storage.tensorboard_events",
    "pipeline.training.hardware", "pyarrow.dataset", "pyarrow.parquet", "ray", "tests.cluster.gated", "tests.counting",
    "torch", "torch.optim.adam",
)  # fmt: skip

_context = get_context("forkserver")
_context.set_forkserver_preload([*_PRELOADED])


class ForkedProcess:
    """A forked command, with the part of the interface of ``subprocess.Popen`` that tests use.

    Args:
        arguments: Arguments of ``world-models``.
        environment: All variables.
        folder: The working directory.
        log: The file for both outputs.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: str) -> None:
        self._process = _context.Process(target=_run, args=([*arguments], dict(environment), str(folder), log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the command runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns its exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("world-models", timeout or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # as Popen does
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], environment: dict[str, str], folder: str, log: str) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["world-models", *arguments]

    from pipeline.cli import main as cli

    try:
        cli.entry()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
