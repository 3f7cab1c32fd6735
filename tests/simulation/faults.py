"""A simulated cluster to which a seed does harm, and what must be true all the same."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from pipeline.base.errors import EpisodeError, JobError
from pipeline.bench.simulated_fanout import RAY_COSTS
from pipeline.execution.actions import Action, Recall, Request, Send
from pipeline.execution.failures import Failure, FailureKind
from pipeline.execution.node_watch import Nodes
from pipeline.execution.scheduler import Scheduler
from pipeline.execution.worker_state import ScheduledWorker, WorkerState
from pipeline.simulation.cluster import SimulatedCluster
from pipeline.simulation.workers import FreeLanes, Lanes, SimulatedJob, SimulatedWorker

FEW = 24  # workers of most cases, at most
GPU_NODE = "gpu"
_LONGEST_S = 4_000.0
_SPARSE_CHECKS = 100  # with more workers, one of this many decisions is checked


class Violated(AssertionError):
    """Something is not as it must be."""


@dataclass
class Case:
    """What a seed draws.

    Attributes:
        seed: The seed.
        workers: Number of workers that are wanted.
        lanes: Lanes of each.
        sizes: Seconds of each job.
        max_attempts: Attempts of each job.
        timeout_s: Silence of a worker that hangs.
        calm: Whether nothing happens at all.
        late_s: Longest time until a worker is up.
        stragglers: Share of workers that take ten times as long.
        far: Share of messages that take up to a second.
        kills, hangs, partings, lost_nodes, drains, stops: How often a worker dies, hangs or is not to be reached, a
            node is lost or drained, the driver is stopped.
        poison: What some jobs do to their worker, and how often: ``kill``, ``hang``, ``name`` or ``raise``.
        fatal: A job that does so always, and what; None in most cases.
    """

    seed: int
    workers: int
    lanes: int
    sizes: list[float]
    max_attempts: int
    timeout_s: float
    calm: bool = False
    late_s: float = 1.0
    stragglers: float = 0.0
    far: float = 0.0
    kills: int = 0
    hangs: int = 0
    partings: int = 0
    lost_nodes: int = 0
    drains: int = 0
    stops: int = 0
    poison: dict[int, tuple[str, int]] = field(default_factory=dict)
    fatal: tuple[int, str] | None = None


def case_of(seed: int, most_workers: int = FEW) -> Case:
    """Draw a case. Of each three, one is calm, or knows nothing worse than deaths."""
    rng = random.Random(seed)
    workers, lanes = max(1, int(most_workers ** rng.random())), rng.choice([1, 1, 1, 2, 3, 16])
    if most_workers > FEW:
        workers, lanes = most_workers, 1
    count = max(1, min(4 * most_workers + 40, int(workers * lanes * rng.choice([0.3, 1, 2, 4, 8]))))
    sizes = [
        rng.uniform(0.5, 1.5) if rng.random() < 0.9 else 0.5 * min(rng.paretovariate(1.5), 20) for _ in range(count)
    ]
    case = Case(seed, workers, lanes, sizes, rng.randint(1, 4), rng.uniform(30, 90), late_s=rng.choice([0.1, 3, 30]))
    kind = rng.randrange(6)
    if kind == 0:
        case.calm = True
        return case
    if kind == 1:
        case.fatal = rng.randrange(count), rng.choice(["kill", "hang", "name", "raise"])
        return case
    case.kills = rng.choice([0, 0, 1, 2, 4])
    for job in rng.sample(range(count), min(count, rng.choice([0, 0, 1, 2]))):
        case.poison[job] = rng.choice(["kill", "name", "raise"]), rng.randint(1, 2)
    if kind > 2:
        case.hangs, case.partings = rng.choice([0, 0, 1, 2]), rng.choice([0, 0, 1, 2])
        case.lost_nodes, case.drains, case.stops = (rng.choice([0, 0, 1, 2]) for _ in range(3))
        case.stragglers, case.far = rng.choice([0, 0, 0.1, 0.3]), rng.choice([0, 0, 0.02, 0.1])
        for job in rng.sample(range(count), min(count, rng.choice([0, 0, 1]))):
            case.poison[job] = "hang", 1
    # However unlucky a job is, it does not fail for the last time.
    harm = case.kills + case.hangs + case.partings + sum(times for _, times in case.poison.values())
    case.max_attempts = harm + rng.randint(1, 3)
    return case


class FaultyCluster(SimulatedCluster):
    """Runs a case, and raises ``Violated`` as soon as something is wrong.

    Attributes:
        begins: How often each job was begun.
    """

    def __init__(self, case: Case, *, show: Callable[[str], None] | None = None) -> None:
        self.case, self._show = case, show
        self._rng = random.Random(case.seed + 1)
        scheduler = Scheduler(
            max_attempts=case.max_attempts, timeout_s=case.timeout_s, jobs_at_once=case.lanes, max_workers=case.workers
        )
        super().__init__(scheduler, num_lanes=case.lanes, costs=RAY_COSTS, delay=self._draw_delay)
        self.begins: Counter[Hashable] = Counter()
        self._nodes = [f"node-{number}" for number in range(self._rng.randint(1, 6))]
        self._draining: set[str] = set()
        self._dead: set[str] = set()
        self._known_gone: set[str] = set()
        self._seen_leave: frozenset[str] = frozenset()
        self._on: dict[SimulatedWorker, str] = {}
        self._given: defaultdict[ScheduledWorker, set[Hashable]] = defaultdict(set)
        self._poison = dict(case.poison)
        self._decisions = 0

    def run_case(self) -> None:
        """Run the case and check how it ends.

        Raises:
            Violated: Something is wrong.
        """
        case = self.case
        last = 2.0 * max(1.0, sum(case.sizes) / case.workers / case.lanes)
        harms: list[tuple[int, Callable[[], None]]] = [
            (case.kills, self._kill_one), (case.hangs, self._hang_one), (case.partings, self._part_one),
            (case.lost_nodes, self._lose_node), (case.drains, self._drain_node),
            (case.stops, lambda: self.stop_driver(self._rng.uniform(0.5, 10))),
        ]  # fmt: skip
        for times, harm in harms:
            for _ in range(times):
                self.at(self._rng.uniform(0, last), harm)
        self.at(_LONGEST_S, self._do_not_end)
        jobs = [SimulatedJob(number, size) for number, size in enumerate(case.sizes)]
        try:
            self.run(jobs)
        except JobError as error:
            self._check_error(str(error))
        else:
            if case.fatal is not None:
                raise Violated(f"job {case.fatal[0]} always fails, and nobody said so")
            if Counter(self.results) != Counter(job.id for job in jobs):
                raise Violated("not every job has exactly one result")
        worst, most = max(self.begins.items(), key=lambda item: item[1])
        copies = self.scheduler.copies
        if case.calm and self.begins.total() > len(jobs) + copies:
            raise Violated(f"nothing happened, and {len(jobs)} jobs, {copies} copied, were begun {self.begins} times")
        worse = case.hangs or case.partings or case.lost_nodes or case.drains or case.stragglers or case.far
        if not worse and case.fatal is None and most > case.max_attempts + copies:
            raise Violated(f"job {worst} was begun {most} times, {case.max_attempts} were allowed")

    def _check_error(self, message: str) -> None:
        if self.case.fatal is None:
            raise Violated(f"no job fails as often as this, but: {message}")
        job, attempts = self.case.fatal[0], self.case.max_attempts
        if attempts > 1 and not message.startswith(f"job {job} was tried {attempts} times"):
            raise Violated(f"job {job} fails each of its {attempts} tries, but: {message}")
        # Results that its worker kept may have put the blame on the job before it, once for each worker.
        if self.begins[job] > attempts + self.case.workers + self.scheduler.copies:
            raise Violated(f"job {job} was begun {self.begins[job]} times, {attempts} were allowed")

    # ---- the cluster

    def make_lanes(self) -> Lanes:
        return FreeLanes(10.0 if self._rng.random() < self.case.stragglers else 1.0)

    def start(self, worker: SimulatedWorker) -> None:
        there = [node for node in self._nodes if node not in self._draining | self._dead]
        if not there:
            there = [f"node-{len(self._nodes)}"]
            self._nodes += there
        takes_gpu = not self.case.calm and GPU_NODE not in self.scheduler.skipped_nodes and self._rng.random() < 0.05
        self._on[worker] = GPU_NODE if takes_gpu else self._rng.choice(there)
        self.at(self.now + self._rng.uniform(0, self.case.late_s), self._come_up, worker)

    def _come_up(self, worker: SimulatedWorker) -> None:
        if self._on[worker] in self._dead and worker.alive:
            self.start(worker)  # the cluster starts it elsewhere
        else:
            self.come_up(worker, self._on[worker])

    def build(self, worker: SimulatedWorker) -> None:
        self.at(self.now + self._rng.uniform(0, 2), self._if_alive, worker, super().build, (worker,))

    def before_tick(self) -> None:
        self._see_nodes()

    def _see_nodes(self) -> None:
        leave = frozenset(self._draining - self._dead) | {GPU_NODE}
        known = frozenset(self._nodes) | {GPU_NODE}
        self._seen_leave = leave
        self.scheduler.see_nodes(Nodes(known, frozenset(self._known_gone), leave, frozenset({GPU_NODE})), self._clock)

    def _draw_delay(self) -> float:
        if self._rng.random() < self.case.far:
            return self._rng.uniform(0, 1)
        return self._rng.uniform(0.0005, 0.005)

    # ---- harm

    def _one(self) -> SimulatedWorker | None:
        living = [worker for worker in self.workers if worker.alive]
        return self._rng.choice(living) if living else None

    def _kill_one(self) -> None:
        if (worker := self._one()) is not None:
            self._die(worker)

    def _hang_one(self) -> None:
        worker = self._one()
        if worker is not None and worker.node_id is not None:  # else it counts as one that waits for a node
            worker.alive = False

    def _part_one(self) -> None:
        """A worker is not to be reached, and a moment later it answers again."""
        if (worker := self._one()) is not None:
            failure = Failure(FailureKind.UNREACHABLE, "the connection to it was lost", None)
            self.to_driver(worker, self.scheduler.unreachable, worker, failure)
            self.at(self.now + self._rng.uniform(0.1, 5), self.to_driver, worker, self._told_lost, worker, failure)

    def _die(self, worker: SimulatedWorker, known_after_s: float | None = None) -> None:
        worker.alive = False
        after_s = self._rng.choice([0.0, 0.5, 4.0]) if known_after_s is None else known_after_s
        if after_s:
            failure = Failure(FailureKind.UNREACHABLE, "the connection to it was lost", None)
            self.to_driver(worker, self.scheduler.unreachable, worker, failure)
        died = Failure(FailureKind.WORKER_LOST, "its worker died", None)
        self.at(self.now + after_s, self.to_driver, worker, self._told_lost, worker, died)

    def _lose_node(self) -> None:
        self._let_go(self._rng.choice([node for node in self._nodes if node not in self._dead] or [GPU_NODE]))

    def _let_go(self, node: str) -> None:
        """End a node with its workers, which is known a while after they are not to be reached."""
        if node in self._dead or node == GPU_NODE:
            return
        self._dead.add(node)
        after_s = self._rng.uniform(0, 20)
        self.at(self.now + after_s, self._known_gone.add, node)
        for worker in [*self.workers]:
            if self._on.get(worker) == node and worker.alive and worker.node_id is not None:
                self._die(worker, after_s + 0.01)

    def _drain_node(self) -> None:
        node = self._rng.choice(self._nodes)
        self._draining.add(node)
        self._known_gone.add(node)
        self.at(self.now + self._rng.uniform(1, 60), self._let_go, node)

    def begun(self, worker: SimulatedWorker, job: SimulatedJob) -> None:
        self.begins[job.id] += 1
        assert isinstance(job.id, int)
        how, left = self._poison.get(job.id, ("", 0))
        if self.case.fatal is not None and job.id == self.case.fatal[0]:
            how, left = self.case.fatal[1], 1
        elif left:
            self._poison[job.id] = how, left - 1
        if left:
            self.at(self.now + self._rng.uniform(0, 0.4), self._suffer, worker, job, how)

    def _suffer(self, worker: SimulatedWorker, job: SimulatedJob, how: str) -> None:
        if not worker.alive or job.id not in worker.running:
            return
        if how == "kill":
            self._die(worker, 0.0)
        elif how == "hang":
            worker.alive = False
        else:
            worker.fail(EpisodeError("it raised", job.id) if how == "name" else ZeroDivisionError(), self.make_lanes())
            self.move(worker)

    def _told_lost(self, worker: SimulatedWorker, failure: Failure, now: float) -> None:
        self._see_nodes()
        self.scheduler.failed(worker, failure, now)

    # ---- checks

    def _do_not_end(self) -> None:
        raise Violated(f"{len(self.scheduler.jobs)} jobs have no result after {_LONGEST_S:g} s")

    def decided(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if self._show is not None:
                self._show(f"{self.now:10.4f}  {_text(action)}")
            self._check_action(action)
        self._decisions += 1
        if len(self.workers) <= _SPARSE_CHECKS or self._decisions % _SPARSE_CHECKS == 0:
            self._check_idle()

    def _check_action(self, action: Action) -> None:
        if isinstance(action, Send):
            ids = {ticket.id for ticket in action.tickets}
            if not action.worker.alive and action.worker not in self.workers:
                raise Violated(f"{action.worker.where()} was removed, and gets a message")
            new = ids - self._given[action.worker]
            if new and action.worker.node_id in self._seen_leave:
                raise Violated(f"{action.worker.where()} must leave its node, and gets the jobs {new}")
            self._given[action.worker] |= ids
        elif isinstance(action, Request):
            staying = sum(1 for worker in self.scheduler.workers if worker.staying)
            if staying + action.count > min(self.case.workers, len(self.scheduler.jobs)):
                raise Violated(f"{action.count} workers are asked for beside {staying}")

    def _check_idle(self) -> None:
        """Nobody is idle while there is work that fits; every worker with jobs was asked for results."""
        scheduler, jobs = self.scheduler, self.scheduler.jobs
        entries = [entry for entry in jobs._entries.values() if entry.queued]
        sociable = [entry for entry in entries if not jobs.goes_alone(entry.ticket)]
        if len(entries) != jobs.num_waiting:
            raise Violated(f"{len(entries)} jobs wait, {jobs.num_waiting} are counted")
        ready = sum(1 for worker in scheduler.workers if worker.state is WorkerState.READY)
        if not ready:
            return
        fair = min(self.case.lanes, -(-len(jobs) // ready))
        takers = [worker for worker in scheduler.workers if worker.takes_jobs]
        for worker in takers:
            if (sociable and len(worker.jobs) < fair) or (entries and not worker.jobs):
                raise Violated(f"{worker.where()} has {len(worker.jobs)} jobs while {len(entries)} wait")
        for worker in scheduler.workers:
            if worker.jobs and worker.built and not (worker.asked or worker.unreachable):
                raise Violated(f"{worker.where()} has jobs, and nobody asks it for results")
        free = sum(worker.free_lanes for worker in takers)
        recalled = sum(len(worker.recalled or ()) for worker in scheduler.workers)
        full = [
            worker for worker in scheduler.workers if worker.surplus and not (worker.recalled or worker.unreachable)
        ]
        if not sociable and free > recalled and full:
            raise Violated(f"{free} lanes are idle while jobs lie before {full[0].where()}")


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


def run_seed(seed: int, most_workers: int = FEW, show: Callable[[str], None] | None = None) -> FaultyCluster:
    """Run the case of a seed.

    Raises:
        Violated: Something is wrong.
    """
    cluster = FaultyCluster(case_of(seed, most_workers), show=show)
    cluster.run_case()
    return cluster
