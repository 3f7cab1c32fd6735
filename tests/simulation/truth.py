"""True state of the jobs and the workers of a simulated cluster, event by event.

It does not use the scheduler's beliefs. All messages from and to the driver are noted as well: the driver cannot
act on more than that. Jobs are known by the IDs of their tickets.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence

from pipeline.execution.jobs import Ticket
from pipeline.simulation.cluster import SimulatedCluster
from pipeline.simulation.workers import Result, SimulatedJob, SimulatedWorker
from tests.simulation.cases import Case

_SLOW_AT_LEAST_S = 1.0  # a worker that is silent for as long, and for twice the time of nearly all jobs, is slow
_UNREACHABLE_S = 3.0  # an unreachable worker's jobs are free after two seconds, which is noticed at a tick
_LAST_TRY_S = 31.0  # the same for a job on its last try
REPORT_S = 29.0  # the end of an unreachable worker is known after half a minute, which is noticed at a tick


class Violated(AssertionError):
    """Something is not as it must be."""


class Life:
    """History of a worker. Times are virtual seconds, infinite for events that did not happen or have ended.

    Attributes:
        worker: Worker.
        held: Jobs that were sent to the worker and of which the driver has heard nothing since.
        begun: Jobs that the worker has begun, or whose fate it took with it, without a result at the driver.
        on_way: Jobs that were sent and have not arrived, in the order in which they were sent.
        disordered: Whether jobs have overtaken each other on their way.
        frozen: Whether the worker has died, raised or lost its connection, which the driver may not know.
        ran_when_frozen: Jobs that ran then.
        known_in_s: Seconds from then until the driver knows.
        held_when_frozen: Jobs that the worker had then, or that were sent to it later.
        kept_when_frozen: Whether the worker had results then.
        up: Whether the driver knows that the process is up.
        built: Whether the driver knows that the worker is built.
        free: Times since which lanes are free for a job that needs no worker of its own. The oldest is taken first.
        blocked_until: Time at which a job last waited for one with the same ID, of an earlier map: it may take a lane.
        vacant_since: Time since which the worker could begin any job.
        exclusive: Whether a job runs that may need the worker for itself.
        heard_at: Time of the driver's clock at which results last came, or the worker got its first jobs.
        maybe_slow: Whether the worker was silent for so long that it may count as slow, until it answers.
        copied: Whether a job of the worker was sent to another as well, until it answers.
        empty_answer: Whether the last answer had no results, so that the worker may be told its jobs again.
        recalled: Jobs that the worker was asked to release, and of which the driver may think that it did.
        unreachable_at: Time of the driver's clock at which it heard that the connection failed.
        leaves_at: Time of the driver's clock at which it saw that the worker must leave its node.
    """

    def __init__(self, worker: SimulatedWorker) -> None:
        self.worker = worker
        self.held: dict[int, SimulatedJob] = {}
        self.begun: set[int] = set()
        self.on_way: list[int] = []
        self.ran_when_frozen: set[int] = set()
        self.held_when_frozen: set[int] = set()
        self.recalled: set[int] = set()
        self.disordered = self.kept_when_frozen = self.frozen = self.up = self.built = self.exclusive = False
        self.maybe_slow = self.copied = self.empty_answer = False
        self.free: deque[float] = deque()
        self.vacant_since = self.unreachable_at = self.leaves_at = math.inf
        self.heard_at = self.known_in_s = self.blocked_until = 0.0

    @property
    def free_since(self) -> float:
        """Time since which the lane is free that has been free for longest."""
        return self.free[0] if self.free else math.inf

    @property
    def unreachable(self) -> bool:
        """Whether the driver knows that the connection failed."""
        return self.unreachable_at < math.inf

    def unsure(self, job: int) -> bool:
        """Whether the driver may know less of a job than that it ran when the worker froze."""
        return self.kept_when_frozen or self.disordered or self.maybe_slow or job in self.recalled


class Truth:
    """True state of the present map and of all workers.

    Args:
        case: Case.
        cluster: Cluster, of which the time is asked.

    Attributes:
        lives: Workers that were not ended.
        missing: Jobs of the map without a result at the driver.
        unsent: Jobs of the map that were never sent to a worker.
        fresh: Jobs of the map that no worker has begun.
        fresh_since: Time since which there are such jobs.
        again: Jobs that were begun in vain, as the driver can know.
        again_since: Time since which there are such jobs.
        held_back: Jobs among these that are not counted: their last try may have failed.
        begins: Number of times that each job was begun.
        tries: Number of times that each job was blamed for a failure.
        explained: Number of times that each job had to be begun again.
        seconds: Durations of the jobs that have results, in ascending order.
        excused_until: Time until which nobody can be blamed for idle workers.
        ends: Number of jobs that ended while many were waiting.
        ran_dry: Number of jobs among these whose worker had no other one.
    """

    def __init__(self, case: Case, cluster: SimulatedCluster) -> None:
        self._case, self._cluster = case, cluster
        self.lives: dict[SimulatedWorker, Life] = {}
        self.missing: dict[int, SimulatedJob] = {}
        self.unsent: dict[int, None] = {}
        self.fresh: dict[int, None] = {}
        self.again: dict[int, None] = {}
        self.held_back: set[int] = set()
        self.fresh_since = self.again_since = math.inf
        self.begins: Counter[int] = Counter()
        self.explained: Counter[int] = Counter()
        self.tries: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.excused_until = 0.0
        self.ran_dry = self.ends = 0
        self._runs: dict[int, set[Life]] = {}
        self._holders: dict[int, set[Life]] = {}

    # ---- looks

    def runs(self, job: int) -> set[Life]:
        """Workers that have begun a job and may still bring its result."""
        return self._runs.get(job, set())

    def holders(self, job: int) -> set[Life]:
        """Workers to which a job was sent, and which may still bring its result, as the driver knows."""
        return self._holders.get(job, set())

    def unresolved(self, job: int, life: Life | None = None, *, surely: bool) -> int:
        """Number of unreachable workers but one that took a job with them, or may have, and whose fate is awaited."""
        clock = self._cluster.clock
        others = [each for each in self.lives.values() if each is not life and each.unreachable]
        if surely:
            others = [each for each in others if clock - each.unreachable_at < REPORT_S and not each.unsure(job)]
            return sum(1 for each in others if job in each.ran_when_frozen)
        others = [each for each in others if clock - each.unreachable_at <= _LAST_TRY_S]
        return sum(1 for each in others if job in each.held_when_frozen)

    def slow_after_s(self, *, surely: bool) -> float:
        """Silence after which a worker may be slow, or surely is; infinite before the first result."""
        if not self.seconds:
            return math.inf
        place = 0.9 * (len(self.seconds) - 1)
        return max(_SLOW_AT_LEAST_S, 2.0 * self.seconds[math.ceil(place) if surely else int(place)])

    # ---- events

    def map_begins(self, tickets: Sequence[Ticket]) -> None:
        """A map begins. Workers may still have jobs of earlier ones, whose results do not count."""
        self.missing = dict(tickets)
        self.unsent = dict.fromkeys(self.missing)
        self.fresh, self.fresh_since = dict(self.unsent), self._cluster.now
        self.again, self.again_since = {}, math.inf
        self.held_back.clear()
        self.seconds.clear()
        self._runs, self._holders = {}, {}

    def came_up(self, life: Life) -> None:
        """The driver hears that a process is up."""
        life.up = True
        life.heard_at = self._cluster.clock

    def was_built(self, life: Life) -> None:
        """The driver hears that a worker is built."""
        life.built = True
        self._is_vacant(life)

    def freeze(self, life: Life) -> None:
        """A worker dies, hangs, raises or loses its connection: the driver does not know what becomes of its jobs."""
        if life.frozen:
            return
        life.frozen = True
        life.kept_when_frozen = bool(life.worker.kept)
        life.ran_when_frozen = set(life.worker.running)
        for job in life.held:
            self._note_run(life, job)
        life.held_when_frozen = set(life.begun)

    def is_unreachable(self, life: Life) -> None:
        """The driver hears that a connection failed: jobs are run elsewhere before their fate is known."""
        life.unreachable_at = self._cluster.clock
        self.explained.update([*life.held])

    def expire(self) -> None:
        """Time has passed: the jobs of unreachable workers are free."""
        for life in self.lives.values():
            silent_s = self._cluster.clock - life.unreachable_at
            for job in [*life.begun] if silent_s > _UNREACHABLE_S else ():
                failures = self.tries[job] + self.unresolved(job, life, surely=False)
                if silent_s > _LAST_TRY_S or failures < self._case.max_attempts - 1:
                    self._drop(life, job)
        self._release_held_back()

    def failed(self, life: Life, *, stays: bool) -> None:
        """The driver has handled a failure."""
        if not stays:
            self.ended(life)
            return
        self._drop_all(life)
        life.frozen = life.disordered = life.maybe_slow = life.copied = life.exclusive = False
        life.held.clear()
        life.on_way.clear()
        life.free.clear()
        self._is_vacant(life)

    def ended(self, life: Life) -> None:
        """A worker was ended."""
        del self.lives[life.worker]
        self._drop_all(life)
        self._release_held_back()

    def sent(self, life: Life, tickets: Sequence[Ticket]) -> None:
        """Jobs are sent to a worker."""
        if not life.held:
            life.heard_at = self._cluster.clock
        life.empty_answer = False
        for job, content in tickets:
            self.unsent.pop(job, None)
            life.held[job] = content
            life.on_way.append(job)
            self._holders.setdefault(job, set()).add(life)
            if life.frozen:
                self._note_run(life, job)
                life.held_when_frozen.add(job)

    def received(self, life: Life, tickets: Sequence[Ticket]) -> None:
        """Jobs have arrived at a worker. One that runs for an earlier map must end before it begins again."""
        running = {life.held[job].id for job in life.worker.running if job in life.held}
        for job, content in tickets:
            if content.id in running:
                self._note_run(life, job)
        jobs = [job for job, _ in tickets]
        if life.on_way[: len(jobs)] == jobs:
            del life.on_way[: len(jobs)]
            return
        life.disordered = True
        life.on_way = [job for job in life.on_way if job not in jobs]

    def begun(self, life: Life, job: int) -> None:
        """A worker has begun a job."""
        life.exclusive = life.exclusive or job not in self.fresh
        life.vacant_since = math.inf
        if life.exclusive:
            life.free.clear()
        elif life.free:
            life.free.popleft()
        self.begins[job] += 1
        self._note_run(life, job)

    def done(self, life: Life) -> None:
        """A worker has ended a job, and not yet begun another one."""
        many = len(self.unsent) > self._case.workers and len(self.missing) > 2 * self._case.workers * self._case.lanes
        self.ends += many
        self.ran_dry += many and not life.worker.inbox
        if not (life.exclusive or life.frozen):
            life.free.append(self._cluster.now)
        if not (life.worker.running or life.worker.inbox):
            life.exclusive = False
            self._is_vacant(life)

    def results(self, life: Life | None, results: Sequence[Result], counts: Sequence[bool]) -> None:
        """The driver has handled results."""
        for (job, _, seconds), counted in zip(results, counts, strict=True):
            if counted:
                self._finish(job)
                insort(self.seconds, seconds)
            if life is not None:
                self._drop(life, job)
                self._no_longer_held(life, job)
        if life is None:
            return
        life.empty_answer = not results
        if not results:
            return
        life.heard_at = self._cluster.clock
        if life.maybe_slow or life.copied:  # it takes jobs again from now on
            life.maybe_slow = life.copied = False
            now = self._cluster.now
            life.free = deque(now for _ in life.free)
            life.vacant_since = now if life.vacant_since < math.inf else math.inf

    def released(self, life: Life, jobs: Sequence[int]) -> None:
        """The driver has handled the answer to a recall."""
        for job in jobs:
            self._no_longer_held(life, job)
        if self._case.orderly:  # no answer is so late that the driver has given it up
            life.recalled.clear()

    # ---- bookkeeping

    def _is_vacant(self, life: Life) -> None:
        life.vacant_since = self._cluster.now
        while len(life.free) < self._case.lanes:
            life.free.append(self._cluster.now)

    def _note_run(self, life: Life, job: int) -> None:
        life.begun.add(job)
        self._runs.setdefault(job, set()).add(life)
        self.fresh.pop(job, None)
        self.again.pop(job, None)
        self.held_back.discard(job)
        self._note_waiting()

    def _drop(self, life: Life, job: int) -> None:
        """A worker will bring no result of a job, or has brought it."""
        if job not in life.begun:
            return
        life.begun.remove(job)
        runs = self.runs(job)
        runs.discard(life)
        if job not in self.missing:
            return
        self.explained[job] += 1
        if not runs and job not in self.fresh:
            self.held_back.add(job)
            self._release_held_back()

    def _release_held_back(self) -> None:
        """A job waits for its next try unless its last one may have failed."""
        for job in sorted(self.held_back):
            if self.tries[job] + self.unresolved(job, surely=False) < self._case.max_attempts:
                self.held_back.remove(job)
                self.again[job] = None
        self._note_waiting()

    def _drop_all(self, life: Life) -> None:
        for job in [*life.begun]:
            self._drop(life, job)
        for job in [*life.held]:
            self._no_longer_held(life, job)

    def _no_longer_held(self, life: Life, job: int) -> None:
        life.held.pop(job, None)
        self.holders(job).discard(life)

    def _finish(self, job: int) -> None:
        del self.missing[job]
        self.held_back.discard(job)
        for waiting in (self.unsent, self.fresh, self.again):
            waiting.pop(job, None)
        self._note_waiting()

    def _note_waiting(self) -> None:
        if not self.fresh:
            self.fresh_since = math.inf
        if not self.again:
            self.again_since = math.inf
        elif self.again_since == math.inf:
            self.again_since = self._cluster.now
