"""A simulated cluster in virtual time: workers, messages that take their time, and a driver that does one at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import EpisodeError
from pipeline.execution.actions import Action, Build, End, Recall, ReportHung, Request, Send
from pipeline.execution.failures import Failure, FailureKind, hung
from pipeline.execution.scheduler import Scheduler
from pipeline.simulation.workers import FreeLanes, Lanes, SimulatedJob, SimulatedWorker

TICK_S = 1.0
_AWAKE_S = 2.0  # a longer silence between two looks means that the driver itself was stopped
_EXCHANGE, _INBOX = 0, 1  # channels to a worker: messages on one keep their order, those of two may overtake


@dataclass(frozen=True)
class DriverCosts:
    """Seconds of the driver's thread, during which it does nothing else.

    Attributes:
        look_s: To look whether one worker has answered; it looks at all of them at once.
        read_s: To read an answer.
        send_s: To send a message.
        job_s: For each job that it sends, to send it and later to take its result.
    """

    look_s: float = 0.0
    read_s: float = 0.0
    send_s: float = 0.0
    job_s: float = 0.0


class SimulatedCluster:
    """Runs one map of jobs with a scheduler. Override the methods that say how workers are made and what befalls them.

    Args:
        scheduler: Scheduler.
        num_lanes: Number of lanes of each worker.
        costs: Driver's time.
        delay: Function that returns the seconds that the next message takes.

    Attributes:
        now: Present time, in seconds.
        results: IDs of the jobs in the order of their first results.
        driver_s: Seconds that the driver was busy.
        messages: Number of messages that the driver sent.
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
        self.messages = 0
        self.results: list[Hashable] = []
        self.workers: list[SimulatedWorker] = []
        self._num_lanes, self._costs, self._delay = num_lanes, costs, delay
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._arrived: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._free_at = self._step_at = 0.0
        self._clock = self._looked_at = self._tick_at = 0.0

    def run(self, jobs: Sequence[SimulatedJob]) -> float:
        """Run all jobs; returns the time of the last result.

        Raises:
            JobError: See ``Scheduler.failed``.
        """
        began, self._step_at = self.now, math.inf
        self.scheduler.begin(jobs, self._clock)
        self._wake(self.now)
        while self.scheduler.jobs:
            self.now, _, function, arguments = heapq.heappop(self._events)
            function(*arguments)
        return self.now - began

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

    def make_lanes(self) -> Lanes:
        """Make the lanes of a new worker."""
        return FreeLanes()

    def start(self, worker: SimulatedWorker) -> None:
        """Start a worker that was asked for: call ``come_up`` with its node, maybe later."""
        self.at(self.now + self._delay(), self.come_up, worker, "node")

    def build(self, worker: SimulatedWorker) -> None:
        """Build a worker."""
        self.to_driver(worker, self.scheduler.built, worker)

    def begun(self, worker: SimulatedWorker, job: SimulatedJob) -> None:
        """A worker has begun a job."""

    def before_tick(self) -> None:
        """The driver is about to look after time."""

    def decided(self, actions: Sequence[Action]) -> None:
        """The scheduler has decided."""

    # ---- workers

    def come_up(self, worker: SimulatedWorker, node_id: str) -> None:
        """A worker's process is up."""
        if worker.alive:
            self.to_driver(worker, self.scheduler.up, worker, node_id)

    def to_driver(self, worker: SimulatedWorker, event: Callable[..., None], *arguments: Any) -> None:
        """Send an event to the driver. Its last argument, the time, is added when it is handled."""
        worker.answers_up_to = max(worker.answers_up_to, self.now + self._delay())
        self.at(worker.answers_up_to, self._arrive, event, arguments)

    def move(self, worker: SimulatedWorker) -> None:
        """Begin what can begin, and answer if it is time."""
        if not worker.alive:
            return
        for job in worker.begin(self.now):
            self.begun(worker, job)
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
            self.to_driver(worker, self._raised, worker, failure)
        elif answer is not None:
            self.to_driver(worker, self._results, worker, answer)

    def kill(self, worker: SimulatedWorker) -> None:
        """End a worker's process."""
        worker.alive = False

    def _end(self, worker: SimulatedWorker, end_at: float) -> None:
        if worker.alive and end_at == worker.end_at:
            worker.end_at = math.nan  # so that `move` notes the next one, which may end now as well
            worker.end(self.now)
            self.move(worker)

    def _receive(
        self, worker: SimulatedWorker, jobs: Sequence[SimulatedJob], failures: int, hold_s: float | None
    ) -> None:
        worker.post(jobs, failures)
        if hold_s is not None:
            worker.ask(hold_s)
        self.move(worker)

    def _give_back(self, worker: SimulatedWorker, ids: Sequence[Hashable]) -> None:
        if worker.alive:
            self.to_driver(worker, self._released, worker, worker.recall(ids))
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
        """The driver takes all that has arrived, decides and acts."""
        if self.now < self._step_at:
            return
        self._step_at = math.inf
        if self.now < self._free_at:
            self._wake(self._free_at)
            return
        self._clock += min(self.now - self._looked_at, _AWAKE_S)
        self._looked_at = self.now
        arrived, self._arrived = self._arrived, []
        self._free_at = self.now + self._costs.look_s * len(self.workers) + self._costs.read_s * len(arrived)
        for event, arguments in arrived:
            event(*arguments, self._clock)
        if self._clock >= self._tick_at:
            self._tick_at = self._clock + TICK_S
            self.before_tick()
            self.scheduler.tick(self._clock)
        actions = self.scheduler.decide(self._clock)
        self.decided(actions)
        for action in actions:
            self._do(action)
        self.driver_s += self._free_at - self.now
        self._wake(self.now + max(0.0, self._tick_at - self._clock))
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
            case Send(worker, tickets, asks, hold_s):
                jobs = [SimulatedJob(ticket.id, ticket.job.size) for ticket in tickets]
                self._free_at += self._costs.job_s * len(jobs)
                hold = hold_s if asks else None
                channel = _EXCHANGE if asks else _INBOX
                self._tell(worker, channel, self._receive, worker, jobs, worker.noted_failures, hold)
            case Recall(worker, ids):
                self._tell(worker, _INBOX, self._give_back, worker, ids)
            case ReportHung(worker):
                if not any(arguments[:1] == (worker,) for _, arguments in self._arrived):
                    self._arrive(self._gave_up, (worker,))
            case End(worker):
                self.kill(worker)
                self.workers.remove(worker)

    def _tell(self, worker: SimulatedWorker, channel: int, function: Callable[..., None], *arguments: Any) -> None:
        self.messages += 1
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

    def _results(self, worker: SimulatedWorker, results: Sequence[tuple[int, float]], now: float) -> None:
        self.results += [job.id for job in self.scheduler.results(worker, results, now) if job is not None]

    def _released(self, worker: SimulatedWorker, ids: Sequence[int], now: float) -> None:
        self.scheduler.released(worker, ids)

    def _raised(self, worker: SimulatedWorker, failure: Failure, now: float) -> None:
        if isinstance(failure.cause, EpisodeError):
            worker.noted_failures += 1
        self.scheduler.failed(worker, failure, now)

    def _gave_up(self, worker: SimulatedWorker, now: float) -> None:
        self.scheduler.failed(worker, hung(0.0), now)
