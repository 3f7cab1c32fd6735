"""A real Ray cluster of several nodes on this machine, in a separate process, which is also its driver."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection
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

_END_S = 60.0  # allowed for nodes to end

# The cluster of the driver's process.
_cluster: Any = None


class ManyNodes:
    """A cluster that runs within a context. All its processes end with the context; other Rays are not touched.

    If a test times out, the driver is killed with its cluster, and the next test gets a new one.

    Args:
        head: Arguments of Ray's ``Cluster.add_node`` for the head node.

    Attributes:
        folder: The folder of Ray's sessions and logs.
    """

    def __init__(self, **head: Any) -> None:
        self._head = head

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._driver is not None:
                with suppress(BrokenProcessPool, TimeoutError):
                    self._driver.submit(_end).result(_END_S)
        finally:
            self._leave()

    def _begin(self) -> None:
        self._temporary = TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)  # a short path
        self.folder = self._temporary.name
        self._driver: ProcessPoolExecutor | None = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.in_driver(_begin, self.folder, self._head)

    def _leave(self) -> None:
        """Kill the driver, if it is alive. Its nodes end with it."""
        if self._driver is not None:
            for process in self._driver._processes.values():
                process.kill()
            self._driver.shutdown()
            self._driver = None
        self._temporary.cleanup()

    def add(self, **options: Any) -> str:
        """Add a node with arguments of Ray's ``Cluster.add_node``; returns its id."""
        return self.in_driver(add_node, options)

    def kill(self, node_id: str) -> None:
        """Kill a node's processes, as if its machine were lost."""
        self.in_driver(kill_node, node_id)

    def lose_driver(
        self, function: Callable[Parameters, object], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> None:
        """Call a function that ends the driver's process and with it the cluster."""
        assert self._driver is not None
        with suppress(BrokenProcessPool):
            self._driver.submit(function, *arguments, **named).result()
            raise AssertionError("the driver's process is still alive")
        self._leave()

    def in_driver(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Call a module's function in the driver, which is connected to Ray. Its state stays in its module."""
        if self._driver is None:
            self._begin()
        assert self._driver is not None
        future = self._driver.submit(function, *arguments, **named)
        try:
            return future.result()
        except BaseException:
            if not future.done():  # the test has timed out
                self._leave()
            raise


def _begin(folder: str, head: dict[str, Any]) -> None:
    global _cluster
    os.environ["RAY_TMPDIR"] = folder
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # A job's `python` is the first one on the head's PATH.
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
    """End the cluster with the tests' process, even if that is killed."""
    tests = parent_process()
    assert tests is not None
    tests.join()
    try:
        _end()
    finally:
        os._exit(1)


def address() -> str:
    """The cluster's address. This function and the following ones run in the driver."""
    return str(_cluster.address)


def add_node(options: dict[str, Any]) -> str:
    least = {"include_dashboard": False, "include_log_monitor": False, "object_store_memory": 80_000_000}
    return cast(str, _cluster.add_node(**{**least, **options}).node_id)


def live_nodes() -> set[str]:
    """The ids of all nodes except the head. Ray needs seconds to notice a killed node."""
    from actors.nodes import staying_nodes

    return staying_nodes() & {node.node_id for node in _cluster.worker_nodes}


def wait_until_used(node_ids: Collection[str]) -> None:
    """Wait until Ray places work on each of the nodes. The head's scheduler hears of a new node after the cluster."""
    import ray
    from ray.exceptions import TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node_id in node_ids:
        placed = ray.remote(_work).options(
            num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        )
        while True:
            try:
                ray.get(placed.remote())
                break
            except TaskUnschedulableError:  # the scheduler does not know the node yet
                time.sleep(0.1)


def _work() -> None:
    pass


def kill_node(node_id: str) -> None:
    """Kill a node and suspend its workers, which would otherwise continue for a while."""
    (node,) = [node for node in _cluster.list_all_nodes() if node.node_id == node_id]
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    for worker in workers:
        worker.suspend()
    _cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
