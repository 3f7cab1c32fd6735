"""The scheduler's knowledge of the nodes of a cluster, and of the workers that were lost with theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.execution.failures import Failure, FailureKind
from pipeline.execution.worker_state import ScheduledWorker

# Kinds of failures of a worker whose node may be gone.
_PERHAPS_WITH_NODE = (
    FailureKind.WORKER_LOST, FailureKind.NODE_LOST, FailureKind.OUT_OF_MEMORY, FailureKind.UNREACHABLE,
)  # fmt: skip
REPORT_S = 30.0  # the loss of a node is known within this time


@dataclass(frozen=True)
class Nodes:
    """State of the nodes of a cluster, by ID.

    Attributes:
        known: All nodes that were ever seen.
        gone: Nodes that are dead or draining.
        leave: Nodes that workers have to leave.
        unwanted: Nodes among them that stay, but are not for workers: replacements must avoid them.
    """

    known: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    leave: frozenset[str] = frozenset()
    unwanted: frozenset[str] = frozenset()


class NodeWatch:
    """Remembers the nodes of a cluster.

    Attributes:
        nodes: Nodes as they were last seen.
    """

    def __init__(self) -> None:
        self.nodes = Nodes()
        self._lost_at = -math.inf

    def see(self, nodes: Nodes, now: float) -> None:
        """Note the present nodes."""
        if nodes.gone - self.nodes.gone:
            self._lost_at = now
        self.nodes = nodes

    def was_lost_with(self, worker: ScheduledWorker, failure: Failure, now: float) -> bool:
        """Whether a worker died with its node, so that no job is the cause."""
        if failure.kind not in _PERHAPS_WITH_NODE:
            return False
        if worker.node_id is None:  # it may have been starting on a node that was just lost
            return now - self._lost_at < REPORT_S
        return worker.node_id in self.nodes.gone or worker.node_id not in self.nodes.known
