"""A pool of worker actors: it turns Ray's answers into events of the scheduler, and the scheduler's actions into calls.

``pipeline.execution.scheduler`` makes the decisions.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

import ray
from ray.exceptions import RayError

from actors import listening
from actors.failures import classify
from actors.nodes import Node, nodes
from actors.placement import Place, Placement, skipped_message, waiting_message
from actors.telemetry import Telemetry
from actors.worker_handle import WorkerHandle
from actors.worker_identity import WorkerIdentity
from pipeline.config.schema import ExecutionConfig
from pipeline.execution.actions import Action, Build, End, Recall, ReportHung, Request, Send
from pipeline.execution.failures import FailureKind, hung
from pipeline.execution.node_watch import Nodes
from pipeline.execution.protocol import Worker
from pipeline.execution.scheduler import Scheduler

logger = logging.getLogger(__name__)

_MAINTAIN_EVERY_S = 1.0


class RayPool:
    """Workers that stay alive between calls. Use it as ``pipeline.execution.protocol.Pool``.

    ``pipeline.execution.scheduler.Scheduler`` describes the life of a worker.

    Args:
        factory: Function that makes a worker.
        arguments: Arguments of ``factory``, shipped once to each node through the object store.
        execution: Settings: attempts per job, seconds of silence, and nodes for workers.
        telemetry: Metrics of workers, retries and losses.
        placement: Choice of nodes; None on a local Ray, which has one node.
        max_workers: Maximum number of actors; None: one for every ``jobs_per_worker`` jobs.
        jobs_at_once: See ``pipeline.execution.protocol.Executor.pool``.
        jobs_per_worker: See ``pipeline.execution.protocol.Executor.pool``.
    """

    def __init__(
        self,
        factory: Callable[..., Worker],
        arguments: tuple[Any, ...],
        *,
        execution: ExecutionConfig,
        telemetry: Telemetry,
        placement: Placement | None,
        max_workers: int | None,
        jobs_at_once: int,
        jobs_per_worker: int,
    ) -> None:
        self._label = factory.__name__
        self._factory, self._arguments = factory, ray.put(arguments)
        self._execution = execution
        self._driver = WorkerIdentity.of_this_process()
        self._telemetry = telemetry
        self._placement = placement
        self._jobs_at_once = jobs_at_once
        self._scheduler = Scheduler(
            max_attempts=execution.max_attempts, timeout_s=execution.timeout_s, jobs_at_once=jobs_at_once,
            jobs_per_worker=jobs_per_worker, max_workers=max_workers,
        )  # fmt: skip
        self._actions: deque[Action] = deque()  # decided, and not done yet
        self._actors: dict[WorkerHandle, None] = {}  # all that are not ended
        # Seconds that this process was awake: while it is stopped (Ctrl-Z), no worker can be heard.
        self._clock = self._warned_at = 0.0
        self._listened_at = time.monotonic()
        self._exported_workers = self._exported_retries = 0
        self._skipped_nodes: set[str] = set()
        self._look_at_nodes(-math.inf)  # the nodes that are lost already were not lost during this pool's life

    @property
    def num_workers(self) -> int:
        """Maximum number of workers that were ready at the same time."""
        return self._scheduler.num_workers

    @property
    def retries(self) -> int:
        """Number of times that a job was tried again."""
        return self._scheduler.retries

    @property
    def copies(self) -> int:
        """Number of jobs of slow workers that were also sent to another worker."""
        return self._scheduler.copies

    @property
    def lost_workers(self) -> int:
        """Number of workers that were lost with their node."""
        return self._scheduler.lost_workers

    @property
    def _workers(self) -> Iterable[WorkerHandle]:
        return self._scheduler.workers  # type: ignore[return-value]  # all are made by `_request`

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """See ``pipeline.execution.protocol.Pool.map``."""
        self._listened_at = time.monotonic()  # workers were not heard in the pause before it either
        self._scheduler.begin(jobs, self._clock)
        maintain_at = self._clock
        while self._scheduler.jobs:
            if self._clock >= maintain_at:
                self._maintain()
                maintain_at = self._clock + _MAINTAIN_EVERY_S
            self._act()
            answers = self._listen()
            if any(self._concerns_nodes(worker, answer) for worker, answer, _ in answers):
                self._look_at_nodes(self._clock)
            for worker, answer, is_recall in answers:
                if is_recall:
                    self._handle_released(worker, answer)
                else:
                    yield from self._handle_answer(worker, answer)

    def close(self) -> None:
        """Kill all actors, including actors that still wait for a node."""
        for worker in self._actors:
            worker.kill()
        self._actors.clear()
        self._telemetry.workers(0)

    # ---- answers to events

    def _listen(self) -> list[tuple[WorkerHandle, Any, bool]]:
        """Wait a moment for answers; returns worker, answer, and whether it answers a recall."""
        pending = {worker.waiting_for: (worker, False) for worker in self._workers if worker.waiting_for is not None}
        recalled = [worker for worker in self._workers if worker.recall_answer is not None]
        pending.update((worker.recall_answer, (worker, True)) for worker in recalled)
        answers = listening.listen_to_all([*pending])
        now = time.monotonic()
        if now - self._listened_at > 2 * listening.LISTEN_S:  # it was stopped: nobody with an answer was silent
            answers |= listening.ready_answers([reference for reference in pending if reference not in answers])
        self._clock += min(now - self._listened_at, 2 * listening.LISTEN_S)
        self._listened_at = now
        found = []
        for reference, answer in answers.items():
            worker, is_recall = pending[reference]
            found.append((worker, answer, is_recall))
        return found

    def _handle_released(self, worker: WorkerHandle, answer: Any) -> None:
        worker.recall_answer = None
        if not isinstance(answer, RayError):  # the request for results reports it, too
            self._scheduler.released(worker, answer)

    def _handle_answer(self, worker: WorkerHandle, answer: Any) -> Iterator[tuple[Hashable, Any]]:
        """Process an answer: the process is up, the worker is built, results, or an error."""
        if isinstance(answer, RayError):
            self._handle_error(worker, answer)
            return
        worker.waiting_for = None
        if worker.failure is not None:  # it was pinged: the process is alive, but calls may be lost
            self._scheduler.failed(worker, worker.failure, self._clock)
        elif worker.identity is None:
            worker.identity = answer
            self._scheduler.up(worker, answer.node_id, self._clock)
        elif not worker.built:
            self._scheduler.built(worker, self._clock)
        else:
            results = worker.take_results(answer)
            jobs = self._scheduler.results(worker, [(ticket_id, s) for ticket_id, _, s in results], self._clock)
            for (_, result, _), job in zip(results, jobs, strict=True):
                if job is not None:
                    yield job.id, result

    def _concerns_nodes(self, worker: WorkerHandle, answer: Any) -> bool:
        """Whether the nodes matter to an answer: a worker is up, or was lost, maybe with its node."""
        if isinstance(answer, RayError) or worker.failure is not None:
            return True
        return worker.identity is None and self._placement is not None

    def _handle_error(self, worker: WorkerHandle, error: RayError) -> None:
        """Report a failure to the scheduler; raise an error of this project that another attempt would meet again."""
        failure = classify(error)
        if failure.kind is FailureKind.FATAL and failure.cause is not None:
            raise failure.cause from error
        failure = replace(failure, what=f"{failure.what}; {worker.where()}")
        worker.waiting_for = None
        if failure.kind is not FailureKind.UNREACHABLE:
            if failure.by_environment:
                worker.note_raised()
            self._scheduler.failed(worker, failure, self._clock)
        elif not worker.unreachable:  # else it is pinged again at the next maintenance
            self._scheduler.unreachable(worker, failure, self._clock)
            worker.ping()

    def _look_at_nodes(self, now: float) -> None:
        found = nodes()
        leave = set() if self._placement is None else self._placement.unsuitable_nodes(found)
        self._scheduler.see_nodes(
            Nodes(
                known=frozenset(node.id for node in found),
                gone=frozenset(node.id for node in found if not node.alive or node.draining),
                leave=frozenset(leave),
                unwanted=frozenset(node.id for node in found if node.id in leave and _is_permanent(node)),
            ),
            now,
        )

    def _maintain(self) -> None:
        """Once a second: look at the nodes, ping, and tell the scheduler that time has passed."""
        unreachable = [worker for worker in self._workers if worker.unreachable]
        for worker in unreachable:
            if worker.waiting_for is None:
                worker.ping()
        if unreachable or self._placement is not None:
            self._look_at_nodes(self._clock)
        self._scheduler.tick(self._clock)
        new = self._scheduler.skipped_nodes - self._skipped_nodes
        if new:
            self._skipped_nodes |= new
            for node in nodes():
                if node.id in new:
                    logger.warning("%s", skipped_message(node))
        self._warn_if_no_node()

    def _warn_if_no_node(self) -> None:
        """Warn once a minute while all workers wait for a node."""
        if any(worker.identity is not None and worker.staying for worker in self._workers):
            self._warned_at = self._clock
        elif self._clock - self._warned_at >= listening.WARN_EVERY_S:
            self._warned_at = self._clock
            logger.warning("%s", waiting_message(len(self._scheduler.workers)))

    # ---- actions to calls

    def _act(self) -> None:
        """Carry out the scheduler's actions, until there are no more."""
        self._actions.extend(self._scheduler.decide(self._clock))
        while self._actions:
            self._do(self._actions.popleft())
            if not self._actions:
                self._actions.extend(self._scheduler.decide(self._clock))
        if self._scheduler.num_built != self._exported_workers:
            self._exported_workers = self._scheduler.num_built
            self._telemetry.workers(self._exported_workers)
        if self._scheduler.retries != self._exported_retries:
            self._telemetry.retried(self._scheduler.retries - self._exported_retries)
            self._exported_retries = self._scheduler.retries

    def _do(self, action: Action) -> None:
        worker: Any
        match action:
            case Request(count):
                self._request(count)
            case Build(worker):
                worker.identity.check(self._driver, exact=self._execution.exact)
                if self._placement is not None:
                    worker.identity.warn_if_starved()
                worker.build(self._factory, self._arguments)
            case Send(worker, tickets, asks, batching_delay_s):
                worker.send(tickets, batching_delay_s if asks else None)
            case Recall(worker, ids):
                worker.recall(ids)
            case ReportHung(worker):
                if worker.waiting_for is None or not listening.has_answer(worker.waiting_for):
                    failure = hung(self._execution.timeout_s)
                    failure = replace(failure, what=f"{failure.what}; {worker.where()}")
                    self._scheduler.failed(worker, failure, self._clock)
            case End(worker, preempted):
                del self._actors[worker]
                worker.kill()
                if preempted is not None:
                    self._telemetry.lost_worker(preempted=preempted)

    def _request(self, count: int) -> None:
        """Create actors."""
        places: Iterator[Place] = repeat(Place())
        if self._placement is not None:
            places = self._placement.places(nodes(), sum(1 for worker in self._workers if worker.on_head))
        for place in islice(places, count):
            worker = WorkerHandle(self._label, place, self._jobs_at_once)
            self._actors[worker] = None
            self._scheduler.requested(worker)


def _is_permanent(node: Node) -> bool:
    """Whether a node that workers leave stays up, and is not the head (which is needed if it is the only node)."""
    return not (node.draining or node.is_head)
