"""A real head node with the job server, started by the command `ray` on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.request import Request, urlopen

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

_READY_S = 600.0  # long enough for any machine
# Ports for heads: above those of Ray and of the S3 server, below the system's ephemeral ports. Each concurrent test
# process has its own part of the range, so that no other one takes a port between the check and its use.
_FIRST_PORT, _PORTS, _PARTS = 32_000, 768, 8
_SCRIPTS = Path(sys.executable).parent


class Head:
    """A head node that runs within a context. All its processes end with the context.

    Args:
        num_cpus: Number of CPUs of the node.
        node_types: Node types of Ray's autoscaler, like ``available_node_types`` of a cluster file. Its nodes are real
            ones on this machine (Ray's fake provider). None: no autoscaler.
        token: Token that every request needs; None for none.
        environment: Additional variables for all processes of the cluster.

    Attributes:
        jobs: URL of the dashboard and the job server.
        address: Address of the cluster, for drivers.
        folder: Folder of Ray's sessions and logs.
        pid: Id of its main process, the ancestor of all others.
        path: PATH of its processes; a job's ``python`` is the first one on it.
    """

    path = f"{_SCRIPTS}{os.pathsep}{os.environ['PATH']}"

    def __init__(
        self,
        num_cpus: int = 2,
        node_types: dict[str, Any] | None = None,
        token: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._num_cpus = num_cpus
        self._node_types = node_types
        self._headers: dict[str, str] = {}
        self._environment = {**(environment or {}), "RAY_AUTH_MODE": "disabled"}
        if token is not None:
            self._headers = {"Authorization": f"Bearer {token}"}
            self._environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        self._temporary = TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)  # a short path
        self.folder = Path(self._temporary.name)
        self.jobs = self.address = ""

    def __enter__(self) -> Self:
        dashboard, gcs, client = free_ports(3)
        self.jobs, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        options = {
            "port": gcs, "node-ip-address": "127.0.0.1", "num-cpus": self._num_cpus, "temp-dir": self.folder,
            "include-dashboard": "true", "dashboard-host": "127.0.0.1", "dashboard-port": dashboard,
            "ray-client-server-port": client, "dashboard-agent-listen-port": 0, "metrics-export-port": 0,
            "min-worker-port": 0, "max-worker-port": 0, "include-log-monitor": "false",
        }  # fmt: skip
        environment = {"PATH": self.path}
        if self._node_types is not None:
            options["autoscaling-config"] = self._autoscaling_config()
            environment |= {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }  # fmt: skip
        self._log = (self.folder / "head.log").open("w")
        self._process = subprocess.Popen(
            [_SCRIPTS / "ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, **environment, **self._environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        deadline = time.monotonic() + _READY_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the job server never came up"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With --block, `ray start` ends its own processes, except the log monitors of the autoscaler's nodes.
        all_of_them = psutil.Process(self.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for process in all_of_them:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._log.close()
        self._temporary.cleanup()

    def get(self, path: str) -> Any:
        """The dashboard's JSON response."""
        with urlopen(Request(f"{self.jobs}{path}", headers=self._headers), timeout=_READY_S) as reply:
            return json.load(reply)

    def live_nodes(self) -> list[dict[str, float]]:
        """The resources of each node except the head."""
        return [node["resources_total"] for node in self._nodes() if node["state"] == "ALIVE"]

    def labelled_nodes(self, label: str) -> set[str]:
        """The ids of all nodes with a label that the cluster has ever had, except the head."""
        return {node["node_id"] for node in self._nodes() if label in node["labels"]}

    def _nodes(self) -> list[dict[str, Any]]:
        """Ray's entry of each node except the head, including dead ones."""
        nodes = self.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return [node for node in nodes if not node["is_head_node"]]

    def _answers(self) -> bool:
        try:
            self.get("/api/jobs/")
        except OSError:
            return False
        return True

    def _autoscaling_config(self) -> Path:
        path = self.folder / "autoscaling.json"
        config = {
            "cluster_name": "tests",
            "max_workers": 8,
            "idle_timeout_minutes": 0.05,
            "upscaling_speed": 1,
            "provider": {
                # Named by its class: Ray's wheels lack the defaults of "fake_multinode".
                "type": "external", "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
                "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": self.address,
            },
            "available_node_types": {
                **(self._node_types or {}),
                "ray.head.default": {"resources": {"CPU": self._num_cpus}, "node_config": {}, "max_workers": 0},
            },
            "head_node_type": "ray.head.default",
            "auth": {}, "docker": {}, "file_mounts": {},
            **{
                name: []
                for name in (
                    "setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands",
                    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
                    "rsync_exclude", "rsync_filter",
                )
            },
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path


def free_ports(number: int) -> list[int]:
    """Free ports of the loopback interface. Each is given only once in this process."""
    return [next(_ports) for _ in range(number)]


def _free_ports() -> Iterator[int]:
    part = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
    mine = range(_FIRST_PORT + part * _PORTS // _PARTS, _FIRST_PORT + (part + 1) * _PORTS // _PARTS)
    for port in cycle(mine):
        with suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            yield port


_ports = _free_ports()
