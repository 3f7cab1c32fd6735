"""A pool of worker actors that dispatches jobs, yields results as they arrive and replaces lost workers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice, repeat
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from actors import listening
from actors.failures import Failure, FailureKind, classify, hung
from actors.identity import WorkerIdentity
from actors.nodes import Node, nodes
from actors.placement import Place, Placement, skipped_message, waiting_message
from actors.telemetry import Telemetry
from actors.worker_handle import WorkerFailed, WorkerHandle, WorkerState
from pipeline.base.errors import EpisodeError, JobError
from pipeline.config.schema import ExecutionConfig
from pipeline.execution.jobs import MapJobs, batch_for_worker
from pipeline.execution.protocol import Worker

logger = logging.getLogger(__name__)

_MAINTAIN_EVERY_S = 1.0
_SLOW_AFTER = 2.0  # times the 0.9 quantile of job durations: a worker that is silent for longer is slow
_UNREACHABLE_S = 2.0  # after which an unreachable worker's jobs are requeued
_NODE_LOSS_REPORT_S = 30.0  # Ray reports the loss of a node within this time
_RECALL_S = 0.5
_NUM_UNBATCHED = 4  # workers that send each result at once, so that progress shows early


class RayPool:
    """Workers that stay alive between calls. Use it as ``pipeline.execution.protocol.Pool``.

    The life of a worker (``actors.worker_handle.WorkerState``):

    1. Requested: the pool creates an actor. An actor that Ray cannot place yet makes an autoscaler add a node.
    2. Building: its process is up. The pool has checked its identity and has it build its worker.
    3. Ready: it receives jobs and returns results.
    4. Slow: it is silent for long while others are idle. Its jobs also run elsewhere, until it answers.
    5. Draining: its node is going away or is not for workers. Jobs that it has not begun are recalled.
    6. Unreachable: its connection failed. Its jobs are requeued until Ray reports a lost process or node.
    7. Removed: it drained, died or hung, and its actor is killed. While jobs are left, others are requested.

    Args:
        factory: Function that makes a worker.
        arguments: Arguments of ``factory``, shipped once to each node through the object store.
        execution: Settings: attempts per job, seconds of silence, and nodes for workers.
        telemetry: Metrics of workers, retries and losses.
        placement: Choice of nodes; None on a local Ray, which has one node.
        max_workers: Maximum number of actors; None: one for every ``jobs_per_worker`` jobs.
        jobs_at_once: See ``pipeline.execution.protocol.Executor.pool``.
        jobs_per_worker: See ``pipeline.execution.protocol.Executor.pool``.

    Attributes:
        num_workers: Maximum number of workers that were ready at the same time.
        retries: Number of times that a job was tried again.
        copies: Number of jobs of slow workers that were also dispatched to another worker.
        lost_workers: Number of workers that were lost with their node.
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
        self.num_workers = self.retries = self.copies = self.lost_workers = 0
        self._label = factory.__name__
        self._factory, self._arguments = factory, ray.put(arguments)
        self._execution = execution
        self._driver = WorkerIdentity.of_this_process()
        self._telemetry = telemetry
        self._placement = placement
        self._max_workers = max_workers
        self._jobs_at_once, self._jobs_per_worker = jobs_at_once, jobs_per_worker
        self._failed_starts = self._ready = 0
        self._workers: list[WorkerHandle] = []
        self._seconds: list[float] = []  # durations of the finished jobs of this map in their workers
        # Seconds that this process was awake: while it is stopped (Ctrl-Z), no worker can be heard.
        self._clock = self._warned_at = 0.0
        self._listened_at = time.monotonic()
        self._lost_nodes = {node.id for node in nodes() if not node.alive}
        self._node_lost_at = -math.inf
        self._skipped_nodes: set[str] = set()

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """See ``pipeline.execution.protocol.Pool.map``."""
        map_jobs = MapJobs(jobs, self._execution.max_attempts)
        self._seconds.clear()
        maintain_at = self._clock
        while map_jobs:
            if self._clock >= maintain_at:
                self._maintain(map_jobs)
                maintain_at = self._clock + _MAINTAIN_EVERY_S
            # While every worker has jobs ahead, answers may be gathered.
            answers = self._listen(patient=bool(self._seconds) and map_jobs.num_waiting > self._ready)
            candidates: Iterable[WorkerHandle] = answers
            for worker, answer in answers.items():
                try:
                    yield from self._handle_answer(worker, answer, map_jobs)
                except WorkerFailed as failed:
                    self._handle_failure(failed, map_jobs)
                    candidates = self._workers  # for the jobs of the failed one
            self._dispatch(map_jobs, candidates)

    def close(self) -> None:
        """Kill all actors, also the ones that still wait for a node."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._telemetry.workers(0)

    def _request_workers(self, jobs: int) -> None:
        """Create actors up to one for every ``jobs_per_worker`` jobs, or up to ``max_workers``."""
        wanted = -(-jobs // self._jobs_per_worker) if self._max_workers is None else min(self._max_workers, jobs)
        missing = wanted - sum(1 for worker in self._workers if worker.staying)
        if missing <= 0:
            return
        places: Iterator[Place] = repeat(Place())
        if self._placement is not None:
            places = self._placement.places(nodes(), sum(1 for worker in self._workers if worker.on_head))
        self._workers += [WorkerHandle(self._label, place, self._jobs_at_once) for place in islice(places, missing)]

    def _dispatch(self, map_jobs: MapJobs, workers: Iterable[WorkerHandle]) -> None:
        """Dispatch jobs to the given workers that are about to run out of jobs, the ones with the fewest jobs first."""
        # Once a job has failed, results are not batched: that shows which job a worker was running when it died.
        timeout_s = self._execution.timeout_s
        delay_s = 0.0 if map_jobs.has_failures else listening.batching_delay_s(self._ready, timeout_s)
        delays = dict.fromkeys(self._workers[:_NUM_UNBATCHED], 0.0)
        for worker in sorted((worker for worker in workers if worker.takes_jobs), key=lambda worker: len(worker.jobs)):
            count = batch_for_worker(
                waiting=map_jobs.num_waiting, missing=len(map_jobs), workers=self._ready, has=len(worker.jobs),
                jobs_at_once=self._jobs_at_once,
            )  # fmt: skip
            jobs = map_jobs.take(count, has_others=bool(worker.jobs)) if count else []
            if not jobs:
                continue
            if not worker.jobs:
                worker.heard_at = self._clock
            worker.exclusive = map_jobs.goes_alone(jobs[0])
            worker.dispatch(jobs, delays.get(worker, delay_s))
        for worker in workers:
            worker.request_results(delays.get(worker, delay_s))

    def _listen(self, *, patient: bool) -> dict[WorkerHandle, Any]:
        """Wait a moment for answers; returns the answer of each worker that has one."""
        speaking = {worker.waiting_for: worker for worker in self._workers if worker.waiting_for is not None}
        answers = listening.listen_to_all([*speaking], self._ready, patient=patient)
        now = time.monotonic()
        self._clock += min(now - self._listened_at, 2 * listening.LISTEN_S)
        self._listened_at = now
        return {speaking[reference]: answer for reference, answer in answers.items()}

    def _handle_answer(self, worker: WorkerHandle, answer: Any, map_jobs: MapJobs) -> Iterator[tuple[Hashable, Any]]:
        """Process an answer: the process is up, the worker is built, results, or an error."""
        if isinstance(answer, RayError):
            self._handle_error(worker, answer)
            return
        if worker.connection_failure is not None:  # it was pinged: the process is alive, but calls may be lost
            raise WorkerFailed(worker, worker.connection_failure)
        worker.waiting_for = None
        if worker.identity is None:
            worker.identity, worker.heard_at = answer, self._clock
            if self._placement is None or worker.node_id not in self._placement.unsuitable_nodes(nodes()):
                self._build(worker, answer)
            return
        if not worker.built:
            worker.heard_at = self._clock
            worker.mark_built()
            self._failed_starts = 0
            self._count_workers()
            return
        results = worker.take_results(answer)
        if results:
            worker.heard_at = self._clock
            worker.mark_answered()
        for job_id, result, seconds in results:
            # False if another worker was first, or if the job is of an earlier map.
            if map_jobs.finish(job_id):
                self._seconds.append(seconds)
                yield job_id, result

    def _build(self, worker: WorkerHandle, identity: WorkerIdentity) -> None:
        identity.check(self._driver, exact=self._execution.exact)
        if self._placement is not None:
            identity.warn_if_starved(self._driver)
        worker.build(self._factory, self._arguments)

    def _handle_error(self, worker: WorkerHandle, error: RayError) -> None:
        """Note a failed connection; raise any other error."""
        failure = classify(error)
        if failure.kind is FailureKind.FATAL and failure.cause is not None:
            raise failure.cause from error
        if failure.kind is not FailureKind.UNREACHABLE:
            raise WorkerFailed(worker, failure) from error
        if worker.unreachable:
            worker.waiting_for = None  # so that it is pinged again
        else:
            worker.mark_unreachable(failure)
            worker.heard_at = self._clock

    def _handle_failure(self, failed: WorkerFailed, map_jobs: MapJobs) -> None:
        """Requeue a failed worker's jobs and discard the worker, unless it reported that it can continue."""
        worker, failure = failed.worker, failed.failure
        left = self._unshared_jobs(worker, map_jobs)
        begun = worker.begun_when_lost or worker.begun()
        fit, preempted = isinstance(failure.cause, EpisodeError), self._lost_its_node(worker, failure)
        if isinstance(failure.cause, EpisodeError):
            begun = [failure.cause.job_id]
        worker.clear_jobs()
        begun = [job_id for job_id in begun if job_id in map_jobs]
        if not fit:
            self._remove(worker)
            self._telemetry.lost_worker(preempted=preempted)
        if preempted:
            self.lost_workers += 1
            logger.warning("worker lost with its node; its jobs are requeued (not counted as attempts): %s", failed)
        elif worker.built:
            map_jobs.failed(begun, str(failed), failure.cause, raised=failure.kind is FailureKind.RAISED)
        else:
            self._failed_starts += 1
            if self._failed_starts >= self._execution.max_attempts:
                message = f"{self._failed_starts} workers failed to start; the last one: {failed}"
                raise JobError(message) from failure.cause
        self._requeue(left, begun, map_jobs)
        if not begun and not (fit or preempted):
            logger.warning("a worker is replaced: %s", failed)
        # Ray may send a replacement to the node that is going away: it is requested with the next maintenance.
        if worker.built or not preempted:
            self._request_workers(len(map_jobs))

    def _requeue(self, jobs: Iterable[Any], begun: Collection[Hashable], map_jobs: MapJobs) -> None:
        """Requeue jobs; the ones that had begun count as retries."""
        retries = sum(1 for job in map_jobs.requeue(jobs) if job.id in begun)
        self.retries += retries
        self._telemetry.retried(retries)

    def _lost_its_node(self, worker: WorkerHandle, failure: Failure) -> bool:
        """Whether a worker died with its node, so that no job is the cause."""
        if failure.kind not in (FailureKind.WORKER_LOST, FailureKind.UNREACHABLE):
            return False
        known = {node.id: node for node in nodes()}
        gone = {node.id for node in known.values() if not node.alive or node.draining}
        if gone - self._lost_nodes:
            self._lost_nodes, self._node_lost_at = gone, self._clock
        if worker.identity is None:  # it may have been starting on a node that was just lost
            return self._clock - self._node_lost_at < _NODE_LOSS_REPORT_S
        return worker.identity.node_id in gone or worker.identity.node_id not in known

    def _count_workers(self) -> None:
        self._ready = sum(1 for worker in self._workers if worker.built)
        self.num_workers = max(self.num_workers, self._ready)
        self._telemetry.workers(self._ready)

    def _remove(self, worker: WorkerHandle) -> None:
        self._workers.remove(worker)
        worker.kill()
        self._count_workers()

    def _maintain(self, map_jobs: MapJobs) -> None:
        """Do the work that is needed once a second: check workers, request more, rebalance jobs."""
        self._check_unreachable(map_jobs)
        self._drain_workers(map_jobs)
        self._fail_hung_workers(map_jobs)
        self._request_workers(len(map_jobs))
        self._warn_if_no_node()
        if not map_jobs.num_waiting:
            idle = sum(1 for worker in self._workers if worker.takes_jobs and not worker.jobs)
            self._rebalance(map_jobs, idle)
            self._duplicate_slow_jobs(map_jobs, idle)
        self._dispatch(map_jobs, self._workers)

    def _silent_s(self, worker: WorkerHandle) -> float:
        """Seconds of silence of a worker that owes an answer; 0 while it may still wait for a node."""
        return 0.0 if worker.identity is None or worker.waiting_for is None else self._clock - worker.heard_at

    def _fail_hung_workers(self, map_jobs: MapJobs) -> None:
        limit = self._execution.timeout_s
        for worker in [worker for worker in self._workers if self._silent_s(worker) >= limit]:
            if not listening.has_answer(worker.waiting_for):
                self._handle_failure(WorkerFailed(worker, hung(limit)), map_jobs)

    def _check_unreachable(self, map_jobs: MapJobs) -> None:
        """Check the nodes of unreachable workers, and requeue their jobs after a while, last tries later."""
        for worker in [worker for worker in self._workers if worker.unreachable]:
            failure = worker.connection_failure
            assert failure is not None
            if self._lost_its_node(worker, failure):
                self._handle_failure(WorkerFailed(worker, failure), map_jobs)
                continue
            if worker.waiting_for is None:
                worker.ping()
            silent_s = self._clock - worker.heard_at
            if silent_s > _UNREACHABLE_S:
                jobs = {job.id: job for job in self._unshared_jobs(worker, map_jobs)}
                # A job on its last try starts elsewhere only once its worker's fate is known.
                last_tries = filter(map_jobs.is_on_last_try, worker.begun_when_lost)
                kept = [] if silent_s > _NODE_LOSS_REPORT_S else [*last_tries]
                worker.jobs = {job_id: jobs.pop(job_id) for job_id in kept if job_id in jobs}
                self._requeue(jobs.values(), worker.begun_when_lost, map_jobs)

    def _unshared_jobs(self, worker: WorkerHandle, map_jobs: MapJobs) -> list[Any]:
        """Jobs of a worker that have no result, are not queued and that no other worker has."""
        elsewhere = map_jobs.waiting_ids().union(*(other.jobs for other in self._workers if other is not worker))
        return [job for job in map_jobs.unfinished(worker.jobs.values()) if job.id not in elsewhere]

    def _drain_workers(self, map_jobs: MapJobs) -> None:
        """Drain the workers on nodes that workers must leave, and remove the drained ones."""
        if self._placement is None:
            return
        known = {node.id: node for node in nodes()}
        unsuitable = self._placement.unsuitable_nodes([*known.values()])
        for worker in self._workers:
            if worker.node_id in unsuitable and worker.staying:
                worker.drain()
                logger.info("draining worker: its node is going away or is not for workers; %s", worker.where())
        draining = [worker for worker in self._workers if worker.state is WorkerState.DRAINING]
        self._recall(dict.fromkeys(draining), map_jobs)
        for worker in draining:
            node = known.get(worker.node_id or "")
            if node is not None and not (node.draining or node.is_head):
                self._skip_node(node)
            if not worker.jobs:
                self._remove(worker)
                if node is not None and node.draining:
                    self._telemetry.lost_worker(preempted=True)

    def _skip_node(self, node: Node) -> None:
        """Warn about a node that is not for workers, and remove waiting actors: new ones will avoid the node."""
        if node.id not in self._skipped_nodes:
            self._skipped_nodes.add(node.id)
            logger.warning("%s", skipped_message(node))
            for worker in [worker for worker in self._workers if worker.identity is None]:
                self._remove(worker)

    def _recall(self, counts: Mapping[WorkerHandle, int | None], map_jobs: MapJobs) -> None:
        """Recall jobs that workers have not begun, each up to a maximum (None: all), and requeue them.

        If a worker does not report its released jobs, all that it may not have begun are requeued; some run twice.
        """
        asked = {worker: worker.request_recall(count) for worker, count in counts.items()}
        references = [reference for _, reference in asked.values() if reference is not None]
        if references:
            ray.wait(references, num_returns=len(references), timeout=_RECALL_S, fetch_local=False)
        for worker, (ids, reference) in asked.items():
            if reference is not None and listening.has_answer(reference):
                with suppress(RayError):  # the request for results reports it, too
                    ids = ray.get(reference)
            elif reference is not None:
                ids = [*worker.jobs][self._jobs_at_once :]
            map_jobs.requeue(worker.remove_jobs(ids))

    def _rebalance(self, map_jobs: MapJobs, idle: int) -> None:
        """Recall jobs that were not begun from the workers with the most jobs, for the idle ones."""
        surplus = {worker: len(worker.jobs) - self._jobs_at_once for worker in self._workers}
        largest = sorted(surplus, key=lambda worker: -surplus[worker])[:idle]
        self._recall({worker: -(-surplus[worker] // 2) for worker in largest if surplus[worker] > 0}, map_jobs)

    def _duplicate_slow_jobs(self, map_jobs: MapJobs, idle: int) -> None:
        """Run slow workers' jobs on idle workers as well. The first result counts (the same bits on equal CPUs)."""
        if not idle or not self._seconds:
            return
        limit = max(_MAINTAIN_EVERY_S, _SLOW_AFTER * float(np.quantile(self._seconds, 0.9)))
        delay_s = listening.batching_delay_s(self._ready, self._execution.timeout_s)
        silent = {
            worker: self._silent_s(worker) - (delay_s if len(worker.jobs) > self._jobs_at_once else 0.0)
            for worker in self._workers if worker.jobs and not (worker.copied or worker.unreachable)
        }  # fmt: skip
        slow = [worker for worker, silent_s in silent.items() if silent_s > limit]
        for worker in slow:
            worker.mark_slow()
        self._recall(dict.fromkeys(slow), map_jobs)
        for worker in slow:
            copied = map_jobs.requeue(worker.jobs.values(), alone=True)
            if copied:
                self.copies += len(copied)
                message = "%d jobs are also run elsewhere: no answer for %.1f s; %s"
                logger.info(message, len(copied), silent[worker], worker.where())

    def _warn_if_no_node(self) -> None:
        """Warn once a minute while all workers wait for a node."""
        if any(worker.identity is not None and worker.staying for worker in self._workers):
            self._warned_at = self._clock
        elif self._clock - self._warned_at >= listening.WARN_EVERY_S:
            self._warned_at = self._clock
            logger.warning("%s", waiting_message(len(self._workers)))
