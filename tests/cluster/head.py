"""A real head node with the job server, of the machine's own Ray command, on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self
from urllib.request import urlopen

_READY_S = 60.0
_SCRIPTS = Path(sys.executable).parent


class Head:
    """Up within the context; all its processes are gone after it.

    Args:
        num_cpus: of the node.

    Attributes:
        jobs: URL of the dashboard and the job server.
        address: of the cluster, for drivers.
        folder: Ray's session folders and logs.
    """

    def __init__(self, num_cpus: int = 2) -> None:
        self._num_cpus = num_cpus
        self._temporary = TemporaryDirectory(prefix="ray-", dir="/tmp")  # sockets need a short path
        self.folder = Path(self._temporary.name)
        self.jobs = self.address = ""

    def __enter__(self) -> Self:
        dashboard, gcs, client = free_ports(3)
        self.jobs, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        options = {
            "port": gcs, "node-ip-address": "127.0.0.1", "num-cpus": self._num_cpus, "temp-dir": self.folder,
            "include-dashboard": "true", "dashboard-host": "127.0.0.1", "dashboard-port": dashboard,
            "ray-client-server-port": client, "dashboard-agent-listen-port": 0, "metrics-export-port": 0,
        }  # fmt: skip
        self._log = (self.folder / "head.log").open("w")
        self._process = subprocess.Popen(
            [_SCRIPTS / "ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())],
            # A job's `python` is the first of the head's path.
            env={**os.environ, "PATH": f"{_SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + _READY_S
        while not _answers(f"{self.jobs}/api/jobs/"):
            assert self._process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the job server never came up"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)  # with --block it ends all that it began
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        self._temporary.cleanup()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as reply:
            return int(reply.status) == 200
    except OSError:
        return False


def free_ports(number: int) -> list[int]:
    """Ports of the loopback interface that nobody has."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
