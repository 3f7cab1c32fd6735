"""A simulated cluster to which a seed does harm. Its checks raise ``Violated`` as soon as something is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from pipeline.base.errors import EpisodeError, JobError
from pipeline.bench.simulated_fanout import RAY_COSTS
from pipeline.execution.actions import Action, Recall, Request, Send
from pipeline.execution.failures import Failure, FailureKind
from pipeline.execution.jobs import Ticket
from pipeline.execution.node_watch import Nodes
from pipeline.execution.scheduler import Scheduler
from pipeline.simulation.cluster import Answer, SimulatedCluster
from pipeline.simulation.workers import FreeLanes, Result, SimulatedLanes, SimulatedWorker
from tests.simulation.blame import Blame
from tests.simulation.cases import FEW, Case, SimulatedMap, case_of
from tests.simulation.checks import Checks
from tests.simulation.truth import Life, Truth, Violated

GPU_NODE = "gpu"
_TAKES_ONE = 32  # workers up to which the driver may take one answer per look
_LOST_CONNECTION = Failure(FailureKind.UNREACHABLE, "the connection to it was lost", None)
_DIED = Failure(FailureKind.WORKER_LOST, "its worker died", None)
_BUILD_S = 2.0
_NODE_LOSS_S = 20.0  # until it is known that a node was lost, at most


class FaultyCluster(SimulatedCluster):
    """Runs a case.

    Args:
        case: Case.
        show: Function that is called with a line for each action; None: nobody watches.
        other: Number that makes other delays and other harm out of the same case.

    Attributes:
        values: Values of the jobs of each map, by ID, as the driver received them.
    """

    def __init__(self, case: Case, *, show: Callable[[str], None] | None = None, other: int = 0) -> None:
        self._case, self._show = case, show
        self._rng = random.Random(f"{case.seed} {other}")
        scheduler = Scheduler(
            max_attempts=case.max_attempts, timeout_s=case.timeout_s, jobs_at_once=case.lanes, max_workers=case.workers
        )
        super().__init__(scheduler, num_lanes=case.lanes, costs=RAY_COSTS, delay=self._draw_delay)
        self.values: list[dict[Hashable, object]] = []
        self._truth = Truth(case, self)
        self._checks = Checks(case, self, self._truth, self._can_stay)
        self._blame = Blame(case, scheduler, self._truth)
        self._nodes = [f"node-{number}" for number in range(self._rng.randint(1, 6))]
        self._draining: set[str] = set()
        self._dead: set[str] = set()
        self._known_gone: set[str] = set()
        self._seen = Nodes()
        self._on: dict[SimulatedWorker, str] = {}
        self._started: set[SimulatedWorker] = set()
        self._poison = dict(case.poison)
        self._failed_starts = case.failed_starts
        self._ticks = self._was_stopped = False

    def run_case(self) -> None:
        """Run the case and check how it ends.

        Raises:
            Violated: Something is wrong.
        """
        self._plan_harm()
        for each in self._case.maps:
            self._checks.stop(each.pause_s)
            self.pause(each.pause_s)
            try:
                self._run_map(each)
            except JobError as error:
                self._check_error(str(error))
                return
        if self._case.fatal is not None or self._case.no_start:
            raise Violated("a job always fails, or each worker does, and nobody said so")

    def _run_map(self, each: SimulatedMap) -> None:
        first = self.scheduler.jobs.next
        self._truth.map_begins([Ticket(first + place, job) for place, job in enumerate(each.jobs)])
        self._checks.map_begins(each.jobs)
        self.run(each.jobs, len(each.jobs) + 1 if each.most is None else each.most)
        expected = {job.id: job.value for job in each.jobs}
        values = dict(self.results)
        if len(values) != len(self.results):
            raise Violated("a job has two results")
        wrong = [job_id for job_id, value in values.items() if job_id not in expected or expected[job_id] != value]
        if wrong:
            raise Violated(f"results of another map: {[(job_id, values[job_id]) for job_id in wrong]}")
        if each.most is None and len(values) < len(expected):
            raise Violated(f"{len(expected) - len(values)} jobs have no result")
        self._checks.map_ends()
        self.values.append(values)

    def _check_error(self, message: str) -> None:
        case = self._case
        if case.unlucky:
            return  # whether there was reason for it has been checked
        if case.no_start:
            if not message.startswith(f"{case.max_attempts} workers failed to start"):
                raise Violated(f"no worker starts, but: {message}")
            return
        if case.fatal is None:
            raise Violated(f"no job fails as often as this, but: {message}")
        job, attempts = case.fatal[0], case.max_attempts
        if attempts > 1 and not message.startswith(f"job {job} was tried {attempts} times"):
            raise Violated(f"job {job} fails each of its {attempts} tries, but: {message}")

    # ---- the cluster

    def make_lanes(self) -> SimulatedLanes:
        return FreeLanes(10.0 if self._rng.random() < self._case.stragglers else 1.0)

    def start(self, worker: SimulatedWorker) -> None:
        self._truth.lives.setdefault(worker, Life(worker))
        there = [node for node in self._nodes if node not in self._draining | self._dead]
        if not there:
            there = [f"node-{len(self._nodes)}"]
            self._nodes += there
        takes_gpu = not self._case.calm and GPU_NODE not in self.scheduler.skipped_nodes and self._rng.random() < 0.05
        if takes_gpu:
            self._checks.allow(self._checks.restart_s, 1, redone=0)
        self._on[worker] = GPU_NODE if takes_gpu else self._rng.choice(there)
        self.at(self.now + self._rng.uniform(0, self._case.late_s), self._come_up, worker)

    def _come_up(self, worker: SimulatedWorker) -> None:
        if self._on[worker] in self._dead and worker.alive:
            self.start(worker)  # the cluster starts it elsewhere
        else:
            self._started.add(worker)
            self.come_up(worker, self._on[worker])

    def build(self, worker: SimulatedWorker) -> None:
        fails = self._case.no_start or self._failed_starts > 0
        self._failed_starts -= fails
        end = self._fail_to_build if fails else super().build
        self.at(self.now + self._rng.uniform(0, _BUILD_S), self._if_alive, worker, end, (worker,))

    def _fail_to_build(self, worker: SimulatedWorker) -> None:
        self._checks.allow(0.0, 1)
        failure = Failure(FailureKind.RAISED, "it failed: ValueError()", ValueError())
        self.to_driver(worker, self.handle_failed, worker, failure)

    def _can_stay(self, worker: SimulatedWorker) -> bool:
        return self._on[worker] not in self._draining | self._dead | {GPU_NODE}

    def _draw_delay(self) -> float:
        if self._rng.random() < self._case.far:
            return self._rng.uniform(0, 1)
        return self._rng.uniform(0.1, 1) * self._case.delay_s

    def received(self, worker: SimulatedWorker, tickets: Sequence[Ticket]) -> None:
        self._truth.received(self._truth.lives[worker], tickets)

    def begun(self, worker: SimulatedWorker, ticket: Ticket) -> None:
        life, job_id = self._truth.lives[worker], ticket.job.id
        self._truth.begun(life, ticket.id)
        self._checks.begun(life, ticket.id)
        how, left = self._poison.get(job_id, ("", 0))
        if self._case.fatal is not None and job_id == self._case.fatal[0]:
            how, left = self._case.fatal[1], 1
        elif left:
            self._poison[job_id] = how, left - 1
        if left:
            self.at(self.now + self._rng.uniform(0, 0.4), self._suffer, life, ticket, how)

    def ended(self, worker: SimulatedWorker) -> None:
        self._truth.done(self._truth.lives[worker])

    def release_jobs(self, worker: SimulatedWorker, ids: Sequence[int]) -> None:
        if self._rng.random() >= self._case.lost_recalls:
            super().release_jobs(worker, ids)
            return
        self._checks.excuse(self._checks.no_answer_s)
        if self._rng.random() < 0.5:  # the recall arrives, and its answer is lost
            worker.recall(ids)
            self.move(worker)

    # ---- the driver

    def take_answers(self, arrived: list[Answer]) -> list[Answer]:
        stopped, self._was_stopped = self._was_stopped, False
        if self._case.one_by_one and len(self.workers) <= _TAKES_ONE and arrived and not stopped:
            return [arrived.pop(0)]
        return super().take_answers(arrived)

    def before_tick(self) -> None:
        self._see_nodes()
        self._checks.before_tick()
        self._ticks = True

    def _see_nodes(self) -> None:
        """The driver looks at the nodes."""
        leave = frozenset(self._draining - self._dead) | {GPU_NODE}
        known = frozenset(self._nodes) | {GPU_NODE}
        seen = Nodes(known, frozenset(self._known_gone), leave, frozenset({GPU_NODE}))
        if seen == self._seen:
            return
        self._seen = seen
        self.scheduler.see_nodes(seen, self.clock)
        for life in self._truth.lives.values():
            self._note_leaving(life)

    def _note_leaving(self, life: Life) -> None:
        if life.up and self._on[life.worker] in self._seen.leave:
            life.leaves_at = min(life.leaves_at, self.clock)

    def decided(self, actions: Sequence[Action]) -> None:
        ticks, self._ticks = self._ticks, False
        self._blame.no_failure()
        for action in actions:
            if self._show is not None:
                self._show(f"{self.now:10.4f}  {_text(action)}")
            self._checks.action(action)
        self._checks.after_decision(tick=ticks)

    def handle_up(self, worker: SimulatedWorker, node_id: str, now: float) -> None:
        self._see_nodes()
        if (life := self._truth.lives.get(worker)) is not None:
            self._truth.came_up(life)
            self._note_leaving(life)
        super().handle_up(worker, node_id, now)

    def handle_built(self, worker: SimulatedWorker, now: float) -> None:
        if (life := self._truth.lives.get(worker)) is not None:
            self._truth.was_built(life)
            self._blame.was_built()
        super().handle_built(worker, now)

    def handle_results(self, worker: SimulatedWorker, results: Sequence[Result], now: float) -> None:
        life = self._truth.lives.get(worker)
        if life is not None and life.unreachable:
            return  # nobody listens to this answer: the worker is pinged
        before, missing = len(self.results), self._truth.missing
        super().handle_results(worker, results, now)
        counted = self.results[before:]
        counts = [job in missing and (missing[job].id, value) in counted for job, value, _ in results]
        if sum(counts) != len(counted):
            raise Violated(f"results of another map, or second ones, count: {counted}")
        self._truth.results(life, results, counts)

    def handle_released(self, worker: SimulatedWorker, ids: Sequence[int], now: float) -> None:
        if (life := self._truth.lives.get(worker)) is not None:
            self._truth.released(life, ids)
        super().handle_released(worker, ids, now)

    def handle_failed(self, worker: SimulatedWorker, failure: Failure, now: float) -> None:
        self._see_nodes()
        life, handle = self._truth.lives.get(worker), partial(super().handle_failed, worker, failure, now)
        if life is not None:
            self._truth.freeze(life)  # if it is not: the scheduler gives up a worker that is only slow
        self._blame.check(life, failure, handle, lost=self._on[worker] in self._known_gone)
        if life is not None:
            self._truth.failed(life, stays=isinstance(failure.cause, EpisodeError))

    def _handle_unreachable(self, worker: SimulatedWorker, now: float) -> None:
        if (life := self._truth.lives.get(worker)) is not None and not life.unreachable:
            self._truth.is_unreachable(life)
        self.scheduler.unreachable(worker, _LOST_CONNECTION, now)

    # ---- harm

    def _plan_harm(self) -> None:
        case = self._case
        jobs = [job.size for each in case.maps for job in each.jobs]
        last = 2.0 * max(1.0, sum(jobs) / case.workers / case.lanes)
        harms: list[tuple[int, Callable[[], None]]] = [
            (case.kills, self._kill_one), (case.hangs, self._hang_one),
            (case.disconnections, lambda: self._disconnect_one(self._rng.uniform(0.1, 5))),
            (case.long_disconnections, lambda: self._disconnect_one(self._rng.uniform(31, 45))),
            (case.lost_nodes, self._lose_node), (case.drains, self._drain_node), (case.stops, self._stop),
        ]  # fmt: skip
        for times, harm in harms:
            for _ in range(times):
                self.at(self._rng.uniform(0, last), harm)

    def _one(self) -> Life | None:
        living = [life for life in self._truth.lives.values() if life.worker.alive and not life.frozen]
        return self._rng.choice(living) if living else None

    def _freeze(self, life: Life, seconds: float, lost_workers: int = 1) -> None:
        """Something happens to a worker, of which the driver will know after some seconds."""
        self._truth.freeze(life)
        life.known_in_s = seconds
        self._checks.allow(seconds, lost_workers)
        self._checks.excuse(self._checks.no_answer_s)  # it may have been asked to release jobs

    def _kill_one(self) -> None:
        if (life := self._one()) is not None:
            self._die(life, self._rng.choice([0.0, 0.5, 4.0]))

    def _hang_one(self) -> None:
        life = self._one()
        if life is not None and life.worker in self._started:  # else it waits for a node
            self._hang(life)

    def _hang(self, life: Life) -> None:
        self._freeze(life, self._case.timeout_s + 1.0)
        life.worker.alive = False

    def _stop(self) -> None:
        seconds = self._rng.uniform(0.5, 10)
        self._checks.allow(seconds, redone=0)
        self._checks.stop(seconds)
        self._was_stopped = True
        self.stop_driver(seconds)

    def _disconnect_one(self, seconds: float) -> None:
        """A worker is unreachable, and after a while it answers again."""
        if (life := self._one()) is not None:
            self._freeze(life, seconds)
            self.to_driver(life.worker, self._handle_unreachable, life.worker)
            event = self.to_driver, life.worker, self.handle_failed, life.worker, _LOST_CONNECTION
            self.at(self.now + seconds, *event)

    def _die(self, life: Life, after_s: float) -> None:
        """A worker dies, which is known after a while."""
        self._freeze(life, after_s)
        life.worker.alive = False
        if after_s:
            self.to_driver(life.worker, self._handle_unreachable, life.worker)
        self.at(self.now + after_s, self.to_driver, life.worker, self.handle_failed, life.worker, _DIED)

    def _lose_node(self) -> None:
        self._let_go(self._rng.choice([node for node in self._nodes if node not in self._dead] or [GPU_NODE]))

    def _let_go(self, node: str) -> None:
        """End a node with its workers, which is known a while after they are unreachable."""
        if node in self._dead or node == GPU_NODE:
            return
        self._dead.add(node)
        after_s = self._rng.uniform(0, _NODE_LOSS_S)
        self._checks.allow(after_s)
        self.at(self.now + after_s, self._known_gone.add, node)
        for life in [*self._truth.lives.values()]:
            if self._on[life.worker] == node and life.worker.alive and life.worker in self._started:
                self._die(life, after_s + 0.01)

    def _drain_node(self) -> None:
        node = self._rng.choice(self._nodes)
        self._draining.add(node)
        self._known_gone.add(node)
        self._checks.allow(1.0, sum(1 for life in self._truth.lives.values() if self._on[life.worker] == node))
        self.at(self.now + self._rng.uniform(1, 60), self._let_go, node)

    def _suffer(self, life: Life, ticket: Ticket, how: str) -> None:
        """A job does harm to its worker."""
        worker = life.worker
        if not worker.alive or ticket.id not in worker.running or life.frozen:
            return
        if how == "kill":
            self._die(life, 0.0)
        elif how == "vanish":
            self._die(life, self._rng.uniform(10, 25))
        elif how == "hang":
            self._hang(life)
        else:
            self._freeze(life, 0.0, lost_workers=how == "raise")
            error = EpisodeError("it raised", ticket.job.id) if how == "name" else ZeroDivisionError()
            worker.fail(error, self.make_lanes())
            self.move(worker)


def _text(action: Action) -> str:
    """An action in words."""
    name = type(action).__name__
    if isinstance(action, Request):
        return f"{name} {action.count}"
    more = ""
    if isinstance(action, Send):
        more = f" {[ticket.id for ticket in action.tickets]}{' asks' if action.asks else ''}"
    elif isinstance(action, Recall):
        more = f" {list(action.ids)}"
    return f"{name} {action.worker.where()} ({action.worker.state.name}){more}"


def run_seed(
    seed: int, most_workers: int = FEW, *, show: Callable[[str], None] | None = None, other: int = 0
) -> FaultyCluster:
    """Run the case of a seed.

    Raises:
        Violated: Something is wrong.
    """
    cluster = FaultyCluster(case_of(seed, most_workers), show=show, other=other)
    cluster.run_case()
    return cluster
