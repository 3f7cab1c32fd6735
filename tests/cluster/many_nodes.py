"""A real Ray cluster of several nodes on this machine, in a process of its own, which is its driver as well."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

import psutil

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Of the driver's process.
_cluster: Any = None


class ManyNodes:
    """Up within the context; all its processes are gone after it. Other Rays of this machine are not touched.

    Args:
        head: of the head node, arguments of Ray's ``Cluster.add_node``.

    Attributes:
        folder: Ray's session folders and logs.
    """

    def __init__(self, **head: Any) -> None:
        self._head = head
        self._lost = False
        self._temporary = TemporaryDirectory(prefix="ray-", dir="/tmp")  # sockets need a short path
        self.folder = self._temporary.name

    def __enter__(self) -> Self:
        self._driver = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.in_driver(_begin, self.folder, self._head)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lost:
            self.in_driver(_end)
        self._driver.shutdown()
        self._temporary.cleanup()

    def add(self, **options: Any) -> str:
        """A node more, with arguments of Ray's ``Cluster.add_node``; returns its id."""
        return self.in_driver(add_node, options)

    def kill(self, node_id: str) -> None:
        """End a node's processes, as the loss of its machine would."""
        self.in_driver(kill_node, node_id)

    def lose_driver(self, function: Callable[Parameters, object], *arguments: Parameters.args) -> None:
        """Call a function that ends the driver's process, with the cluster that it began."""
        with suppress(BrokenProcessPool):
            self.in_driver(function, *arguments)
            raise AssertionError("the driver's process lives")
        self._lost = True

    def in_driver(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Call a function of a module in the driver, where Ray is connected. What it keeps, it keeps in its module."""
        return self._driver.submit(function, *arguments, **named).result()


def _begin(folder: str, head: dict[str, Any]) -> None:
    global _cluster
    os.environ["RAY_TMPDIR"] = folder
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # A job's `python` is the first of the head's path.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    import ray
    from ray.cluster_utils import Cluster

    _cluster = Cluster()
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    add_node(head)
    ray.init(address=_cluster.address, log_to_driver=False, _node_ip_address="127.0.0.1")


def _end() -> None:
    import ray

    ray.shutdown()
    _cluster.shutdown()


def _end_with_the_tests() -> None:
    """Also where they are killed."""
    tests = parent_process()
    assert tests is not None
    tests.join()
    try:
        _end()
    finally:
        os._exit(1)


def address() -> str:
    """The cluster's; this and what follows are for functions that run in the driver."""
    return str(_cluster.address)


def add_node(options: dict[str, Any]) -> str:
    node = _cluster.add_node(**{"include_dashboard": False, "object_store_memory": 80_000_000, **options})
    return cast(str, node.node_id)


def kill_node(node_id: str) -> None:
    """Nothing on the node does anything from here on; its workers by themselves would work on for a while."""
    (node,) = [node for node in _cluster.list_all_nodes() if node.node_id == node_id]
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    for worker in workers:
        worker.suspend()
    _cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
