"""What really happens to the jobs and the workers of a simulated cluster, event by event.

Nothing here asks the scheduler what it believes. What the driver was told, and what it sent, is noted as well: nobody can
act on more than that.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from pipeline.simulation.cluster import SimulatedCluster
from pipeline.simulation.workers import Result, SimulatedJob, SimulatedWorker
from tests.simulation.cases import Case

_SLOW_AT_LEAST_S = 1.0  # a worker that is silent for as long, and for twice the time of nearly all jobs, is slow
_UNREACHABLE_S = 3.0  # an unreachable worker's jobs are free after two seconds, which is noticed at a tick
_LAST_TRY_S = 31.0  # the same for a job on its last try


class Violated(AssertionError):
    """Something is not as it must be."""


class Life:
    """What happened to a worker so far. Times are virtual seconds, infinite for what did not happen or ended.

    Attributes:
        worker: Worker.
        held: Jobs that were sent to the worker and of which the driver has heard nothing since, by ID.
        begun: Jobs that the worker has begun, or whose fate it took with it, without a result at the driver, by ID.
        on_way: IDs of jobs that were sent and have not arrived, in the order in which they were sent.
        disordered: Whether jobs have overtaken each other on their way.
        running_when_frozen: Jobs that ran when the worker died, raised, or lost its connection, by ID.
        held_when_frozen: Jobs that the worker had then, or that were sent to it later.
        kept_when_frozen: Whether the worker had results then.
        frozen: Whether the worker has died, raised or lost its connection, which the driver may not know.
        up: Whether the driver knows that the process is up.
        built: Whether the driver knows that the worker is built.
        free_since: Time since which the worker could begin a job that needs no worker of its own.
        vacant_since: Time since which the worker could begin any job.
        exclusive: Whether a job runs that may need the worker for itself.
        heard_at: Time of the driver's clock at which results last came, or the worker got its first jobs.
        maybe_slow: Whether the worker was silent for so long that it may count as slow, until it answers.
        copied: Whether a job of the worker was sent to another as well, until it answers.
        empty_answer: Whether the last answer had no results, so that the worker may be told again what it has.
        recalled: IDs of all jobs that the worker was ever asked to give back.
        unreachable_at: Time of the driver's clock at which it heard that the connection failed.
        leaves_at: Time of the driver's clock at which it saw that the worker must leave its node.
    """

    def __init__(self, worker: SimulatedWorker) -> None:
        self.worker = worker
        self.held: dict[Hashable, SimulatedJob] = {}
        self.begun: dict[Hashable, SimulatedJob] = {}
        self.on_way: list[Hashable] = []
        self.running_when_frozen: dict[Hashable, SimulatedJob] = {}
        self.held_when_frozen: dict[Hashable, SimulatedJob] = {}
        self.recalled: set[Hashable] = set()
        self.disordered = self.kept_when_frozen = self.frozen = self.up = self.built = self.exclusive = False
        self.maybe_slow = self.copied = self.empty_answer = False
        self.free_since = self.vacant_since = self.unreachable_at = self.leaves_at = math.inf
        self.heard_at = 0.0

    @property
    def unreachable(self) -> bool:
        """Whether the driver knows that the connection failed."""
        return self.unreachable_at < math.inf


class Truth:
    """What really happened in the present map, and to all workers.

    Attributes:
        lives: Workers that were not ended.
        missing: Jobs of the map without a result at the driver, by ID.
        unsent: Jobs of the map that were never sent to a worker.
        fresh: Jobs of the map that no worker has begun.
        fresh_since: Time since which there are such jobs.
        again: Jobs that were begun in vain, as the driver can know.
        again_since: Time since which there are such jobs.
        begins: How often each job was begun in this map.
        tries: How often each job was blamed for a failure.
        explained: How often each job had to be begun again.
        seconds: Durations of the jobs that have results, in ascending order.
        excused_until: Time until which nobody can be blamed for idle workers.
        ran_dry, ends: Number of jobs that ended while many were waiting; number of these whose worker had none ahead.
    """

    def __init__(self, case: Case, cluster: SimulatedCluster) -> None:
        self._case, self._cluster = case, cluster
        self.lives: dict[SimulatedWorker, Life] = {}
        self.missing: dict[Hashable, SimulatedJob] = {}
        self.unsent: dict[SimulatedJob, None] = {}
        self.fresh: dict[SimulatedJob, None] = {}
        self.again: dict[SimulatedJob, None] = {}
        self.fresh_since = self.again_since = math.inf
        self.begins: Counter[SimulatedJob] = Counter()
        self.explained: Counter[SimulatedJob] = Counter()
        self.tries: Counter[SimulatedJob] = Counter()
        self.seconds: list[float] = []
        self.excused_until = 0.0
        self.ran_dry = self.ends = 0
        self._runs: dict[SimulatedJob, set[Life]] = {}
        self._holders: dict[SimulatedJob, set[Life]] = {}

    # ---- looks

    def is_missing(self, job: SimulatedJob) -> bool:
        """Whether a job is of this map, not only its ID, and has no result."""
        return self.missing.get(job.id) == job

    def runs(self, job: SimulatedJob) -> set[Life]:
        """Workers that have begun a job and may still bring its result."""
        return self._runs.get(job, set())

    def holders(self, job: SimulatedJob) -> set[Life]:
        """Workers to which a job of this map was sent, and which may still bring its result, as the driver knows."""
        return self._holders.get(job, set())

    def slow_after_s(self, *, surely: bool) -> float:
        """Silence after which a worker may be slow, or surely is; infinite before the first result."""
        if not self.seconds:
            return math.inf
        place = 0.9 * (len(self.seconds) - 1)
        return max(_SLOW_AT_LEAST_S, 2.0 * self.seconds[math.ceil(place) if surely else int(place)])

    # ---- a map

    def map_begins(self, jobs: Iterable[SimulatedJob]) -> None:
        """A map begins. Workers may still have jobs of earlier ones, which may be the same jobs."""
        self.missing = {job.id: job for job in jobs}
        self.unsent = dict.fromkeys(self.missing.values())
        self.fresh, self.fresh_since = dict(self.unsent), self._cluster.now
        self.again, self.again_since = {}, math.inf
        self.begins.clear()
        self.explained.clear()
        self.tries.clear()
        self.seconds.clear()
        self._runs, self._holders = {}, {}
        for life in self.lives.values():
            for job in life.held.values():
                if self.is_missing(job):
                    self._holders.setdefault(job, set()).add(life)
            for job in life.begun.values():
                if self.is_missing(job):
                    self._note_run(life, job)

    # ---- workers

    def came_up(self, worker: SimulatedWorker) -> None:
        """The driver hears that a process is up."""
        self.lives[worker].up = True
        self.lives[worker].heard_at = self._cluster.clock

    def was_built(self, worker: SimulatedWorker) -> None:
        """The driver hears that a worker is built."""
        life = self.lives[worker]
        life.built = True
        life.free_since = life.vacant_since = self._cluster.now

    def freeze(self, worker: SimulatedWorker) -> None:
        """A worker dies, hangs, raises or loses its connection: the fate of all its jobs is unknown to the driver."""
        life = self.lives.get(worker)
        if life is None or life.frozen:
            return
        life.frozen = True
        life.kept_when_frozen = bool(worker.kept)
        life.running_when_frozen = {job_id: life.begun[job_id] for job_id in worker.running if job_id in life.begun}
        for job in life.held.values():
            self._note_run(life, job)
        life.held_when_frozen = dict(life.begun)

    def is_unreachable(self, worker: SimulatedWorker) -> None:
        """The driver hears that a connection failed."""
        life = self.lives.get(worker)
        if life is not None and not life.unreachable:
            life.unreachable_at = self._cluster.clock

    def expire(self) -> None:
        """Time has passed: the jobs of unreachable workers are free."""
        for life in self.lives.values():
            if not life.unreachable:
                continue
            silent_s = self._cluster.clock - life.unreachable_at
            for job in [*life.begun.values()]:
                last = self.tries[job] == self._case.max_attempts - 1
                if silent_s > (_LAST_TRY_S if last else _UNREACHABLE_S):
                    self._drop(life, job)

    def failed(self, worker: SimulatedWorker, *, stays: bool) -> None:
        """The driver has handled a failure."""
        life = self.lives.get(worker)
        if life is None:
            return
        for job in [*life.begun.values()]:
            self._drop(life, job)
        for job in life.held.values():
            self.holders(job).discard(life)
        life.held.clear()
        if stays:
            life.frozen = life.disordered = life.maybe_slow = life.copied = life.exclusive = False
            life.on_way.clear()
            life.free_since = life.vacant_since = self._cluster.now
        else:
            self.ended(worker)

    def ended(self, worker: SimulatedWorker) -> None:
        """A worker was ended."""
        life = self.lives.pop(worker, None)
        if life is None:
            return
        for job in [*life.begun.values()]:
            self._drop(life, job)
        for job in life.held.values():
            self.holders(job).discard(life)

    # ---- jobs of a worker

    def sent(self, life: Life, jobs: Sequence[SimulatedJob]) -> None:
        """Jobs are sent to a worker."""
        if not life.held:
            life.heard_at = self._cluster.clock
        life.empty_answer = False
        for job in jobs:
            self.unsent.pop(job, None)
            life.held[job.id] = job
            life.on_way.append(job.id)
            if self.is_missing(job):
                self._holders.setdefault(job, set()).add(life)
            if life.frozen:
                self._note_run(life, job)
                life.held_when_frozen[job.id] = job

    def received(self, worker: SimulatedWorker, jobs: Sequence[SimulatedJob]) -> None:
        """Jobs have arrived at a worker."""
        if (life := self.lives.get(worker)) is None or not jobs:
            return
        ids = [job.id for job in jobs]
        if life.on_way[: len(ids)] != ids:
            life.disordered = True
        for job_id in ids:
            if job_id in life.on_way:
                life.on_way.remove(job_id)

    def begun(self, worker: SimulatedWorker, job: SimulatedJob) -> None:
        """A worker has begun a job."""
        life = self.lives[worker]
        first = job in self.fresh
        self.begins[job] += self.is_missing(job)
        self._note_run(life, job)
        life.vacant_since = math.inf
        life.exclusive = life.exclusive or not first
        if life.exclusive or worker.lanes.running >= self._case.lanes:
            life.free_since = math.inf

    def done(self, worker: SimulatedWorker) -> None:
        """A worker has ended a job, and not yet begun another one."""
        if (life := self.lives.get(worker)) is None:
            return
        many = len(self.unsent) > self._case.workers and len(self.missing) > 2 * self._case.workers * self._case.lanes
        self.ends += many
        if worker.inbox:
            return
        self.ran_dry += many
        if not worker.running:
            life.exclusive = False
            life.vacant_since = self._cluster.now
        if not life.exclusive:
            life.free_since = min(life.free_since, self._cluster.now)

    def results(self, worker: SimulatedWorker, results: Sequence[Result], counts: Sequence[bool]) -> None:
        """The driver has handled results."""
        life = self.lives.get(worker)
        for (job_id, value, seconds), counted in zip(results, counts, strict=True):
            if counted:
                self._finish(job_id)
                insort(self.seconds, seconds)
            if life is None:
                continue
            job = life.begun.get(job_id)
            if job is not None and job.value == value:
                self._drop(life, job)
            held = life.held.get(job_id)
            if held is not None and held.value == value:
                del life.held[job_id]
                self.holders(held).discard(life)
        if life is None:
            return
        life.empty_answer = not results
        if not results:
            return
        life.heard_at = self._cluster.clock
        if life.maybe_slow or life.copied:  # it takes jobs again from now on
            life.maybe_slow = life.copied = False
            now = self._cluster.now
            life.free_since = now if life.free_since < math.inf else math.inf
            life.vacant_since = now if life.vacant_since < math.inf else math.inf

    def released(self, worker: SimulatedWorker, ids: Sequence[Hashable]) -> None:
        """The driver has handled the answer to a recall."""
        if (life := self.lives.get(worker)) is None:
            return
        for job_id in ids:
            job = life.held.pop(job_id, None)
            if job is not None:
                self.holders(job).discard(life)

    # ---- bookkeeping

    def _note_run(self, life: Life, job: SimulatedJob) -> None:
        life.begun[job.id] = job
        if not self.is_missing(job):
            return
        self._runs.setdefault(job, set()).add(life)
        self.fresh.pop(job, None)
        self.again.pop(job, None)
        self._note_waiting()

    def _drop(self, life: Life, job: SimulatedJob) -> None:
        """A worker will bring no result of a job."""
        life.begun.pop(job.id, None)
        runs = self.runs(job)
        runs.discard(life)
        if not self.is_missing(job):
            return
        self.explained[job] += 1
        if not runs and job not in self.fresh:
            self.again[job] = None
            self._note_waiting()

    def _finish(self, job_id: Hashable) -> None:
        job = self.missing.pop(job_id)
        for waiting in (self.unsent, self.fresh, self.again):
            waiting.pop(job, None)
        self._runs.pop(job, None)
        self._note_waiting()

    def _note_waiting(self) -> None:
        if not self.fresh:
            self.fresh_since = math.inf
        if not self.again:
            self.again_since = math.inf
        elif self.again_since == math.inf:
            self.again_since = self._cluster.now
