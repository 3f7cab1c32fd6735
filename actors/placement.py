"""Placement of a pool's workers: spread over the nodes that are for workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.nodes import Node
from pipeline.config.schema import ExecutionConfig

# A node type that is not for workers carries this label with the value "no"; the autoscaler then starts none for them.
WORKERS_LABEL = "world-models/workers"


@dataclass(frozen=True)
class Place:
    """Place where Ray may put an actor.

    Attributes:
        options: Actor options for Ray. They always name a scheduling strategy: without one, a trial of Ray Tune keeps
            its workers within its own resources, which are none.
        on_head: Whether the place is the head, because there is no other node.
    """

    options: Mapping[str, Any] = field(default_factory=lambda: {"scheduling_strategy": "DEFAULT"})
    on_head: bool = False


class Placement:
    """Chooses nodes for workers. By default, GPU nodes are excluded, and the head if there are other nodes.

    Every worker is an actor of one CPU with a label selector. Unlike Ray's affinities, label selectors count as demand
    for which the autoscaler adds nodes.

    Args:
        execution: Settings; ``workers_on`` includes the head or GPU nodes.
    """

    def __init__(self, execution: ExecutionConfig) -> None:
        self._included = frozenset(execution.workers_on)

    def places(self, nodes: Sequence[Node], on_head: int) -> Iterator[Place]:
        """Endless iterator over places for new actors.

        Args:
            nodes: Nodes of the cluster.
            on_head: Number of workers that are on the head already, because there is no other node.
        """
        head = next((node for node in nodes if node.is_head and node.alive and not node.draining), None)
        if head is not None and self.only_head_available(nodes):
            for _ in range(int(head.num_cpus) - on_head):
                yield Place(
                    {"scheduling_strategy": "DEFAULT", "label_selector": {"ray.io/node-id": head.id}}, on_head=True
                )
        selector = {}
        if excluded := [node.id for node in nodes if node.alive and not self._is_for_workers(node)]:
            selector["ray.io/node-id"] = f"!in({','.join(excluded)})"
        if "gpu-nodes" not in self._included:
            selector[WORKERS_LABEL] = "!no"
        while True:
            yield Place({"scheduling_strategy": "SPREAD", "label_selector": selector})

    def only_head_available(self, nodes: Sequence[Node]) -> bool:
        """Whether only the head can run workers, because no other live node is for them."""
        return not any(node.alive and not node.draining and self._is_for_workers(node) for node in nodes)

    def unsuitable_nodes(self, nodes: Sequence[Node]) -> set[str]:
        """IDs of the nodes that workers have to leave.

        These are draining nodes, and nodes that workers landed on but should not use: the head once other nodes exist,
        and nodes that joined after the actor was requested.
        """
        spared = self.only_head_available(nodes)
        return {
            node.id for node in nodes
            if node.draining or (node.alive and not self._is_for_workers(node) and not (node.is_head and spared))
        }  # fmt: skip

    def _is_for_workers(self, node: Node) -> bool:
        if node.num_cpus < 1:
            return False
        if node.is_head and "head" not in self._included:
            return False
        return "gpu-nodes" in self._included or (node.num_gpus == 0 and node.labels.get(WORKERS_LABEL) != "no")


def skipped_message(node: Node) -> str:
    """Warning about a node that workers leave because it is not for them."""
    return (
        f"node {node.id} at {node.address} is not for workers; the workers that Ray placed there leave it. Label its "
        f'node type {WORKERS_LABEL}: "no", so that no such node is started for workers. Or let workers use it: '
        "-o execution.workers_on=[gpu-nodes]"
    )


def waiting_message(workers: int) -> str:
    """Warning that all workers wait for a node."""
    return (
        f"{workers} workers of one CPU each wait for a node. GPU nodes are not used, and neither is the head if there "
        "are others, unless execution.workers_on names them; `ray status` shows what the autoscaler does"
    )
