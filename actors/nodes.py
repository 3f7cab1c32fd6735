"""Ray's nodes: what there is to place workers on, which of them are about to go, and telling Ray that one is.

Ray has no public way to drain a node, to list the draining ones, to find this machine's node without connecting to it,
or to start without a signal handler of its own: the private ones are in this file alone. Ray itself is imported by the
functions that need it, so that what only waits beside a node stays small.
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

_TIMEOUT_S = 10.0
_UNTIL_NOTICED_S = 5.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's, hexadecimal.
        address: IP address.
        is_head: whether the cluster's control service runs there.
        num_cpus, num_gpus: in all, used or not; 0 of a dead node.
        labels: Ray's own (``ray.io/node-id``, ...) and those that the node was started with.
        alive: false of one that was lost or has left.
        draining: about to go: Ray places nothing new on it, what runs there runs on.
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
    """A Ray node on this machine, as the command line of its process (the raylet) tells.

    Attributes:
        id: Ray's, hexadecimal.
        cluster_address: HOST:PORT of the cluster's control service.
        pid, started: of the process; see ``pipeline.base.machine.process_started``.
    """

    id: str
    cluster_address: str
    pid: int
    started: float

    def lives(self) -> bool:
        return process_started(self.pid) == self.started


def this_node(node_id: str | None = None) -> LocalNode:
    """The Ray node of this machine, without connecting to it.

    Args:
        node_id: which, where several share a machine.

    Raises:
        ConfigError: there is none, or there are several and it was not said which.
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
    raise ConfigError(f"{len(found)} Ray nodes run on this machine, say which: {running}")


def nodes() -> list[Node]:
    """All nodes that the cluster knows, dead ones too. Needs a connection (``ray.init``); takes about 2 ms."""
    import ray

    draining = draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            is_head="node:__internal_head__" in node["Resources"],
            num_cpus=node["Resources"].get("CPU", 0.0),
            num_gpus=node["Resources"].get("GPU", 0.0),
            labels=dict(node["Labels"]),
            alive=node["Alive"],
            draining=node["NodeID"] in draining,
        )
        for node in ray.nodes()
    ]


def staying_nodes() -> set[str]:
    """The ids of the nodes that are there and not about to go. Needs a connection (``ray.init``)."""
    return {node.id for node in nodes() if node.alive and not node.draining}


def was_lost(look: Callable[[], object], timeout_s: float = _UNTIL_NOTICED_S) -> bool:
    """Whether a node is found to be lost on which something has just died.

    Ray knows of the death of a process before that of its node: it is given a few seconds.

    Args:
        look: Tells whether it is by now.
        timeout_s: Seconds that it is waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def sharing_a_folder() -> list[Path]:
    """Session folders that several live nodes use, of one machine. Needs a connection (``ray.init``).

    Ray unpacks a job's working directory there once for every node, over the one that is there already: what runs in
    that one is left in a folder that is deleted, where MKL for one ends the process (``Cannot load libtorch_cpu.so``).
    """
    import ray

    sockets: dict[tuple[str, Path], set[str]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            socket = Path(node["RayletSocketName"])
            sockets.setdefault((node["NodeManagerHostname"], socket.parent.parent), set()).add(socket.name)
    # Of two containers that have their machine's name, each has a folder of its own, where the sockets are of one name.
    return [folder for (_, folder), names in sockets.items() if len(names) > 1]


@contextmanager
def sigterm_left_alone() -> Iterator[None]:
    """Keep this process's own handler of SIGTERM while Ray starts.

    ``ray.init`` sets one of its own, which ends the process without a word and without giving back what it holds. To
    set the old one again afterwards would leave a moment without it. Beneath Python it sets another one, which prints a
    stack trace, and at times crashes over that without end; it hands a signal on, so that it may be there for a moment.
    """
    from ray._private import utils

    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # beneath Python, too


def draining_nodes() -> dict[str, float | None]:
    """The ids of nodes that are about to go, each with the time when, in seconds since the epoch; None: not known.

    Needs a connection (``ray.init``); takes less than a millisecond. A node that is gone is no longer among them.
    """
    from ray._private.state import state

    return {node_id: deadline_ms / 1000 or None for node_id, deadline_ms in state.get_draining_nodes().items()}


def drain(node_id: str, cluster_address: str, *, reason: str, deadline_s: float | None) -> None:
    """Tell Ray that a node's machine will be taken away (a preemption, in Ray's terms, which it cannot refuse).

    From then on nothing new is placed on the node, and what runs there runs on; the node leaves once it is idle. Ray
    does not end it at the deadline: the cloud does. An id that Ray does not know is accepted all the same.

    Args:
        node_id: Ray's, hexadecimal.
        cluster_address: HOST:PORT of the cluster's control service. No connection (``ray.init``) is needed.
        reason: for people: it is in Ray's logs, and with the node's death.
        deadline_s: when the machine will be gone, in seconds since the epoch; None: not known.

    Raises:
        ClusterError: the cluster cannot be reached (Ray itself tries for 40 s), or refuses.
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
    """See whether a node could be drained: the control service answers, and takes this process's token if it wants one.

    Raises:
        ClusterError: it does not (Ray itself tries for 40 s).
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
