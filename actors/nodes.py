"""Ray's nodes: listing them, finding this machine's node, and draining a node.

Ray has no public way to drain a node, to list the draining ones, to find this machine's node without connecting to it,
or to start without its own signal handler. Only this file uses the private ways. The functions that need Ray import it
themselves, so that a process that only waits (``cluster.spot``) stays small.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.errors import ClusterError, ConfigError
from pipeline.base.machine import process_started

HEAD_RESOURCE = "node:__internal_head__"  # of the head alone, where the control service and jobs' drivers run

_TIMEOUT_S = 10.0
_UNTIL_NOTICED_S = 5.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's node ID, hexadecimal.
        address: IP address.
        is_head: Whether the cluster's control service runs there.
        num_cpus: Total number of CPUs, used or not; 0 for a dead node.
        num_gpus: Total number of GPUs, used or not; 0 for a dead node.
        labels: Ray's own labels (``ray.io/node-id``, ...) and the labels with which the node was started.
        alive: Whether the node is up; False if it was lost or has left.
        draining: Whether the node is going away: Ray places nothing new on it, and its present work continues.
    """

    id: str
    address: str
    is_head: bool
    num_cpus: float
    num_gpus: float
    labels: dict[str, str]
    alive: bool
    draining: bool


@dataclass(frozen=True)
class LocalNode:
    """A Ray node on this machine, read from the command line of its process (the raylet).

    Attributes:
        id: Ray's node ID, hexadecimal.
        cluster_address: HOST:PORT of the cluster's control service.
        pid: Process ID of the raylet.
        started: Start of the raylet; see ``pipeline.base.machine.process_started``.
    """

    id: str
    cluster_address: str
    pid: int
    started: float

    def lives(self) -> bool:
        """Whether the raylet still runs."""
        return process_started(self.pid) == self.started


def this_node(node_id: str | None = None) -> LocalNode:
    """Find the Ray node of this machine, without connecting to it.

    Args:
        node_id: ID of the node, if several share the machine.

    Raises:
        ConfigError: There is no such node, or there are several and no ID was given.
    """
    found = _local_nodes()
    wanted = [node for node in found if node_id in (None, node.id)]
    if len(wanted) == 1:
        return wanted[0]
    running = ", ".join(node.id for node in found) or "none"
    if node_id is not None:
        raise ConfigError(f"Ray node {node_id} does not run on this machine; running: {running}")
    if not found:
        raise ConfigError("no Ray node runs on this machine: start one first with `ray start --address=HEAD:PORT`")
    raise ConfigError(f"{len(found)} Ray nodes run on this machine, choose one with --node-id: {running}")


def nodes() -> list[Node]:
    """All nodes that the cluster knows, including dead ones. Needs a connection (``ray.init``); takes about 2 ms."""
    import ray

    draining = draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            is_head=HEAD_RESOURCE in node["Resources"],
            num_cpus=node["Resources"].get("CPU", 0.0),
            num_gpus=node["Resources"].get("GPU", 0.0),
            labels=dict(node["Labels"]),
            alive=node["Alive"],
            draining=node["NodeID"] in draining,
        )
        for node in ray.nodes()
    ]


def staying_nodes() -> set[str]:
    """IDs of the live nodes that are not draining. Needs a connection (``ray.init``)."""
    return {node.id for node in nodes() if node.alive and not node.draining}


def was_lost(look: Callable[[], object], timeout_s: float = _UNTIL_NOTICED_S) -> bool:
    """Wait for Ray to report the loss of a node on which a process has just died.

    Ray notices the death of a process some seconds before the loss of its node.

    Args:
        look: Function that returns something true once the node counts as lost.
        timeout_s: Maximum wait in seconds.

    Returns:
        Whether the node was lost.
    """
    deadline = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def sharing_a_folder() -> list[Path]:
    """Session folders that several live nodes of one machine share. Needs a connection (``ray.init``).

    Ray unpacks a job's working directory there once for every node, and replaces the earlier copy. Processes that run
    in the deleted copy fail; MKL, for example, ends the process (``Cannot load libtorch_cpu.so``).
    """
    import ray

    sockets: dict[tuple[str, Path], set[str]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            socket = Path(node["RayletSocketName"])
            sockets.setdefault((node["NodeManagerHostname"], socket.parent.parent), set()).add(socket.name)
    # Two containers with their machine's host name have separate folders, and their sockets have the same name.
    return [folder for (_, folder), names in sockets.items() if len(names) > 1]


@contextmanager
def preserved_sigterm_handler() -> Iterator[None]:
    """Keep this process's own handler of SIGTERM while Ray starts.

    ``ray.init`` sets its own Python handler, which ends the process silently without releasing its resources. Restoring
    the old handler afterwards would leave a gap. Below Python, Ray sets another handler, which prints a stack trace and
    sometimes crashes in an endless loop while doing so. It forwards the signal, so that it may be set for a moment.
    """
    from ray._private import utils

    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # also below Python


def draining_nodes() -> dict[str, float | None]:
    """Draining nodes: ID to deadline in seconds since the Unix epoch (None if not known).

    Needs a connection (``ray.init``); takes less than a millisecond. Nodes that have left are not included.
    """
    from ray._private.state import state

    return {node_id: deadline_ms / 1000 or None for node_id, deadline_ms in state.get_draining_nodes().items()}


def drain(node_id: str, cluster_address: str, *, reason: str, deadline_s: float | None) -> None:
    """Tell Ray that a node's machine will be taken away (in Ray's terms a preemption, which Ray cannot refuse).

    From then on Ray places nothing new on the node, its present work continues, and the node leaves once it is idle.
    The cloud ends the node at the deadline, not Ray. Ray also accepts an unknown node ID.

    Args:
        node_id: Ray's node ID, hexadecimal.
        cluster_address: HOST:PORT of the cluster's control service. No connection (``ray.init``) is needed.
        reason: Text for people, shown in Ray's logs and with the node's death.
        deadline_s: Time when the machine will be gone, in seconds since the Unix epoch; None if not known.

    Raises:
        ClusterError: The cluster cannot be reached (Ray tries for 40 s), or it refuses.
    """
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    deadline_ms = 0 if deadline_s is None else int(deadline_s * 1000)
    with _control_service(cluster_address) as service:
        accepted, refusal = service.drain_node(
            node_id, DRAIN_NODE_REASON_PREEMPTION, reason, deadline_ms, timeout=_TIMEOUT_S
        )
    if not accepted:
        raise ClusterError(f"the cluster at {cluster_address} refuses to drain node {node_id}: {refusal}")


def check_reachable(cluster_address: str) -> None:
    """Check that a node could be drained: the control service answers, and accepts the token if it needs one.

    Raises:
        ClusterError: The control service does not answer or refuses the token (Ray tries for 40 s).
    """
    with _control_service(cluster_address) as service:
        service.get_draining_nodes(timeout=_TIMEOUT_S)


@contextmanager
def _control_service(cluster_address: str) -> Iterator[Any]:
    import ray

    try:
        yield ray._raylet.GcsClient(address=cluster_address)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the cluster at {cluster_address} cannot be reached: {error}") from error


def _local_nodes() -> list[LocalNode]:
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] != "raylet":
            continue
        flags = dict(part.split("=", 1) for part in process.info["cmdline"] or () if "=" in part)
        started = process_started(process.pid)
        if "--node_id" in flags and "--gcs-address" in flags and started is not None:
            found.append(LocalNode(flags["--node_id"], flags["--gcs-address"], process.pid, started))
    return found
