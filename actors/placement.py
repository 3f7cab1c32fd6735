"""Where the workers of a pool go: spread over the nodes that are for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.nodes import Node
from pipeline.config.schema import ExecutionConfig

# A node type that is not for workers says so with this label, so that none of them ever makes the autoscaler start one.
WORKERS_LABEL = "world-models/workers"


@dataclass(frozen=True)
class Place:
    """Where Ray may put an actor.

    Attributes:
        options: of the actor.
        on_head: whether it is the head, for want of another node.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    on_head: bool = False


class Placement:
    """Chooses nodes for workers: not GPU nodes, and the head only where it is all there is, unless told otherwise.

    Every worker is an actor of one CPU with a label selector: unlike Ray's affinities, these are what the autoscaler
    understands as demand that a new node would meet.

    Args:
        execution: ``workers_on`` tells otherwise.
    """

    def __init__(self, execution: ExecutionConfig) -> None:
        self._told = frozenset(execution.workers_on)

    def places(self, nodes: Sequence[Node], on_head: int) -> Iterator[Place]:
        """A place for one new actor after the other, without end.

        Args:
            nodes: of the cluster.
            on_head: workers that are on the head already, because it is all there is.
        """
        head = next((node for node in nodes if node.is_head and node.alive and not node.draining), None)
        if head is not None and self.is_all_there_is(nodes):
            for _ in range(int(head.num_cpus) - on_head):
                yield Place({"label_selector": {"ray.io/node-id": head.id}}, on_head=True)
        selector = {}
        if excluded := [node.id for node in nodes if node.alive and not self._is_for_workers(node)]:
            selector["ray.io/node-id"] = f"!in({','.join(excluded)})"
        if "gpu-nodes" not in self._told:
            selector[WORKERS_LABEL] = "!no"
        while True:
            yield Place({"scheduling_strategy": "SPREAD", "label_selector": selector})

    def is_all_there_is(self, nodes: Sequence[Node]) -> bool:
        """Whether no node is for workers, so that the head must do."""
        return not any(node.alive and not node.draining and self._is_for_workers(node) for node in nodes)

    def to_leave(self, nodes: Sequence[Node]) -> set[str]:
        """The ids of the nodes that workers are to leave: those that are about to go, and those that are not for
        workers, where some are all the same: the head, before there were others, and nodes that came later than the
        actor was asked for, which Ray knew of no reason to avoid.
        """
        spared = self.is_all_there_is(nodes)
        return {
            node.id for node in nodes
            if node.draining or (node.alive and not self._is_for_workers(node) and not (node.is_head and spared))
        }  # fmt: skip

    def _is_for_workers(self, node: Node) -> bool:
        if node.num_cpus < 1:
            return False
        if node.is_head and "head" not in self._told:
            return False
        return "gpu-nodes" in self._told or (node.num_gpus == 0 and node.labels.get(WORKERS_LABEL) != "no")


def left_alone(node: Node) -> str:
    """What is said of a node that workers were put on and leave."""
    return (
        f"node {node.id} at {node.address} is not for workers, and those that Ray put there leave it. Label its type "
        f'{WORKERS_LABEL}: "no", so that none is started for them, or let them use it: '
        "-o execution.workers_on=[gpu-nodes]"
    )
