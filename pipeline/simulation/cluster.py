"""A simulated cluster in virtual time: workers, messages with delays, and a driver that does one thing at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.execution.actions import Action, Build, End, Recall, ReportHung, Request, Send
from pipeline.execution.failures import Failure, FailureKind, hung
from pipeline.execution.jobs import Ticket
from pipeline.execution.scheduler import Scheduler
from pipeline.simulation.workers import FreeLanes, Result, SimulatedJob, SimulatedLanes, SimulatedWorker

TICK_S = 1.0
_AWAKE_S = 2.0  # a longer silence between two looks means that the driver itself was stopped
# Channels to a worker and back: messages of one keep their order, those of two may overtake each other.
_EXCHANGE, _INBOX = 0, 1


Answer: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]  # handler in the driver, and its arguments


@dataclass(frozen=True)
class DriverCosts:
    """Seconds of the driver's thread, during which it does nothing else.

    Attributes:
        look_s: Time to look at one worker, in seconds; the driver looks at all of them at once.
        read_s: Time to read an answer, in seconds.
        send_s: Time to send a message, in seconds.
        job_s: Time per job, to send it and take its result, in seconds.
    """

    look_s: float = 0.0
    read_s: float = 0.0
    send_s: float = 0.0
    job_s: float = 0.0


class SimulatedCluster:
    """Runs maps of jobs with a scheduler. Subclasses override how workers are made and which faults they have.

    Args:
        scheduler: Scheduler.
        num_lanes: Number of lanes of each worker.
        costs: Costs of the driver's actions.
        delay: Function that returns the seconds that the next message takes.

    Attributes:
        now: Present time, in seconds.
        results: Job IDs and values of the present map, in the order in which they arrived.
        driver_s: Seconds that the driver was busy.
        workers: Workers that were not ended.
        clock: Seconds that the driver was awake: the time that its scheduler knows.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        num_lanes: int,
        costs: DriverCosts,
        delay: Callable[[], float],
    ) -> None:
        self.scheduler = scheduler
        self.now = self.driver_s = 0.0
        self.clock = 0.0
        self.results: list[tuple[Hashable, Any]] = []
        self.workers: list[SimulatedWorker] = []
        self._num_lanes, self._costs, self._delay = num_lanes, costs, delay
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._arrived: list[Answer] = []
        self._free_at = self._step_at = 0.0
        self._looked_at = self._tick_at = 0.0

    def run(self, jobs: Sequence[SimulatedJob], most: float = math.inf) -> float:
        """Run a map of jobs.

        Args:
            jobs: Jobs.
            most: Number of results after which the map is abandoned.

        Returns:
            Seconds until the last result.

        Raises:
            JobError: See ``Scheduler.failed``.
        """
        began, self._step_at = self.now, math.inf
        self.results.clear()
        self._looked_at = self.now  # a pause is no silence of the workers
        self.scheduler.begin(jobs, self.clock)
        self._wake(self.now)
        while self.scheduler.jobs and len(self.results) < most:
            self._next_event()
        return self.now - began

    def pause(self, seconds: float) -> None:
        """Let time pass between two maps, while workers continue; only tests do. The driver does other things."""
        self.stop_driver(seconds)
        until = self.now + seconds
        while self._events and self._events[0][0] < until:
            self._next_event()
        self.now = until

    def _next_event(self) -> None:
        self.now, _, function, arguments = heapq.heappop(self._events)
        function(*arguments)

    def at(self, time: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function at a time, in seconds."""
        self._number += 1
        heapq.heappush(self._events, (time, self._number, function, arguments))

    def start_ready(self, count: int) -> None:
        """Begin with workers that are built already."""
        for _ in range(count):
            worker = self._new_worker()
            self.scheduler.requested(worker)
            self.scheduler.up(worker, "node", self.now)
            self.scheduler.built(worker, self.now)
        self.scheduler.decide(self.now)  # to build them, which has been done

    # ---- to override

    def make_lanes(self) -> SimulatedLanes:
        """Make the lanes of a new worker."""
        return FreeLanes()

    def start(self, worker: SimulatedWorker) -> None:
        """Start a requested worker: call ``come_up`` with its node, maybe later."""
        self.at(self.now + self._delay(), self.come_up, worker, "node")

    def build(self, worker: SimulatedWorker) -> None:
        """Build a worker."""
        self.to_driver(worker, self.handle_built, worker)

    def received(self, worker: SimulatedWorker, tickets: Sequence[Ticket]) -> None:
        """Jobs have arrived at a worker."""

    def begun(self, worker: SimulatedWorker, ticket: Ticket) -> None:
        """A worker has begun a job."""

    def ended(self, worker: SimulatedWorker) -> None:
        """A worker has ended a job, and keeps the result until the driver requests it."""

    def take_answers(self, arrived: list[Answer]) -> list[Answer]:
        """Remove and return the arrived answers that this look of the driver finds; by default all."""
        taken = arrived[:]
        arrived.clear()
        return taken

    def before_tick(self) -> None:
        """The driver is about to look after time."""

    def decided(self, actions: Sequence[Action]) -> None:
        """The scheduler has decided."""

    # ---- workers

    def come_up(self, worker: SimulatedWorker, node_id: str) -> None:
        """A worker's process is up."""
        if worker.alive:
            self.to_driver(worker, self.handle_up, worker, node_id)

    def to_driver(
        self, worker: SimulatedWorker, event: Callable[..., None], *arguments: Any, channel: int = _EXCHANGE
    ) -> None:
        """Send an event to the driver. Its last argument, the time, is added when it is handled."""
        worker.answers_up_to[channel] = max(worker.answers_up_to[channel], self.now + self._delay())
        self.at(worker.answers_up_to[channel], self._arrive, event, arguments)

    def move(self, worker: SimulatedWorker) -> None:
        """Begin what can begin, and answer if it is time."""
        if not worker.alive:
            return
        for ticket in worker.begin(self.now):
            self.begun(worker, ticket)
        end_at = worker.lanes.next_end()
        if end_at != worker.end_at:
            worker.end_at = end_at
            if end_at < math.inf:
                self.at(end_at, self._end, worker, end_at)
        due, answer = worker.answer(self.now)
        if due < math.inf:
            self.at(due, self.move, worker)
        if isinstance(answer, BaseException):
            failure = Failure(FailureKind.RAISED, f"it failed: {answer!r}; {worker.where()}", answer)
            self.to_driver(worker, self.handle_failed, worker, failure)
        elif answer is not None:
            self.to_driver(worker, self.handle_results, worker, answer)

    def kill(self, worker: SimulatedWorker) -> None:
        """End a worker's process."""
        worker.alive = False

    def _end(self, worker: SimulatedWorker, end_at: float) -> None:
        if worker.alive and end_at == worker.end_at:
            worker.end_at = math.nan  # so that `move` notes the next one, which may end now as well
            worker.end(self.now)
            self.ended(worker)
            self.move(worker)

    def _receive(
        self, worker: SimulatedWorker, tickets: Sequence[Ticket], failures: int, batching_delay_s: float | None
    ) -> None:
        worker.post(tickets, failures)
        self.received(worker, tickets)
        if batching_delay_s is not None:
            worker.ask(batching_delay_s)
        self.move(worker)

    def release_jobs(self, worker: SimulatedWorker, ids: Sequence[int]) -> None:
        """Ask a worker to release the jobs that it has not begun."""
        self.to_driver(worker, self.handle_released, worker, worker.recall(ids), channel=_INBOX)
        self.move(worker)

    # ---- the driver

    def stop_driver(self, seconds: float) -> None:
        """Stop the driver for a while."""
        self._free_at = max(self._free_at, self.now + seconds)

    def _arrive(self, event: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._arrived.append((event, arguments))
        self._wake(self.now)

    def _wake(self, time: float) -> None:
        time = max(time, self._free_at)
        if time < self._step_at:
            self._step_at = time
            self.at(time, self._step)

    def _step(self) -> None:
        """The driver handles all arrived answers, decides and acts."""
        if self.now < self._step_at:
            return
        self._step_at = math.inf
        if self.now < self._free_at:
            self._wake(self._free_at)
            return
        self.clock += min(self.now - self._looked_at, _AWAKE_S)
        self._looked_at = self.now
        answers = self.take_answers(self._arrived)
        self._free_at = self.now + self._costs.look_s * len(self.workers) + self._costs.read_s * len(answers)
        for event, arguments in answers:
            event(*arguments, self.clock)
        if self.now >= self._tick_at:
            self._tick_at = self.now + TICK_S
            self.before_tick()
            self.scheduler.tick(self.clock)
        actions = self.scheduler.decide(self.clock)
        self.decided(actions)
        for action in actions:
            self._do(action)
        self.driver_s += self._free_at - self.now
        self._wake(self._tick_at)
        if self._arrived:
            self._wake(self._free_at)

    def _do(self, action: Action) -> None:
        worker: Any
        match action:
            case Request(count):
                for _ in range(count):
                    worker = self._new_worker()
                    self.scheduler.requested(worker)
                    self.start(worker)
            case Build(worker):
                self._tell(worker, _EXCHANGE, self.build, worker)
            case Send(worker, tickets, asks, batching_delay_s):
                self._free_at += self._costs.job_s * len(tickets)
                delay_s = batching_delay_s if asks else None
                channel = _EXCHANGE if asks else _INBOX
                self._tell(worker, channel, self._receive, worker, tickets, worker.noted_failures, delay_s)
            case Recall(worker, ids):
                self._tell(worker, _INBOX, self.release_jobs, worker, ids)
            case ReportHung(worker):
                if not any(arguments[:1] == (worker,) for _, arguments in self._arrived):
                    self._arrive(self._report_hung, (worker,))
            case End(worker):
                self.kill(worker)
                self.workers.remove(worker)

    def _tell(self, worker: SimulatedWorker, channel: int, function: Callable[..., None], *arguments: Any) -> None:
        self._free_at += self._costs.send_s
        worker.arrives_up_to[channel] = max(worker.arrives_up_to[channel], self._free_at + self._delay())
        self.at(worker.arrives_up_to[channel], self._if_alive, worker, function, arguments)

    def _if_alive(self, worker: SimulatedWorker, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if worker.alive:
            function(*arguments)

    def _new_worker(self) -> SimulatedWorker:
        self._number += 1
        worker = SimulatedWorker(f"worker {self._number}", self._num_lanes, self.make_lanes())
        self.workers.append(worker)
        return worker

    def _report_hung(self, worker: SimulatedWorker, now: float) -> None:
        self.handle_failed(worker, hung(0.0), now)

    # ---- the driver handles an answer

    def handle_up(self, worker: SimulatedWorker, node_id: str, now: float) -> None:
        """A worker's process is up."""
        self.scheduler.up(worker, node_id, now)

    def handle_built(self, worker: SimulatedWorker, now: float) -> None:
        """A worker is built."""
        self.scheduler.built(worker, now)

    def handle_results(self, worker: SimulatedWorker, results: Sequence[Result], now: float) -> None:
        """A worker has answered with results."""
        jobs = self.scheduler.results(worker, [(ticket_id, seconds) for ticket_id, _, seconds in results], now)
        self.results += [(job.id, value) for (_, value, _), job in zip(results, jobs, strict=True) if job is not None]

    def handle_released(self, worker: SimulatedWorker, ids: Sequence[int], now: float) -> None:
        """A worker has released jobs."""
        self.scheduler.released(worker, ids)

    def handle_failed(self, worker: SimulatedWorker, failure: Failure, now: float) -> None:
        """A worker has failed.

        Raises:
            JobError: See ``Scheduler.failed``.
        """
        if failure.by_environment:
            worker.noted_failures += 1
        self.scheduler.failed(worker, failure, now)
