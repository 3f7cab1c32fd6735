"""Invariants of a scheduler under all events. They do not use the scheduler's own beliefs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

from pipeline.execution.actions import Action, End, Recall, Request, Send
from pipeline.simulation.cluster import TICK_S, SimulatedCluster
from pipeline.simulation.workers import SimulatedJob, SimulatedWorker
from tests.simulation.cases import FEW, Case
from tests.simulation.truth import REPORT_S, Life, Truth, Violated

_BATCHING_DELAY_S = 2.0  # a worker keeps results for this long
_RECALL_S = 0.5  # a recall without an answer counts as refused after this long, which is noticed at a tick
_TICKS = 3  # an action that is due at this number of ticks in a row is overdue
_BUILD_S = 2.0  # a worker is built within this time
_ENOUGH = 20  # jobs that say how often workers run dry


class Checks:
    """Checks a cluster while it runs. With up to ``FEW`` workers, all are looked at after each decision.

    With more, idle workers and results that are kept are looked for once a second only. A worker that idles for too
    long is still found: its idle time counts from its beginning. Everything else is checked at each event.

    Args:
        case: Case.
        cluster: Cluster.
        truth: True state of the cluster.
        can_stay: Function that returns whether a worker can stay on its node.
    """

    def __init__(
        self, case: Case, cluster: SimulatedCluster, truth: Truth, can_stay: Callable[[SimulatedWorker], bool]
    ) -> None:
        self._case, self._cluster, self._truth, self._can_stay = case, cluster, truth, can_stay
        delay_s = case.longest_delay_s
        # A driver that feeds many workers answers one of them later. Jobs are recalled in two or three rounds.
        self.lag_s = 8 * delay_s + 0.05 + 1e-3 * case.workers
        self._idle_s = 9 * delay_s + (3e-4 if case.workers <= FEW else 1e-3) * case.workers
        if not case.orderly:
            longest = max(job.size for each in case.maps for job in each.jobs)
            self._idle_s += self.no_answer_s + longest * self.slowness
        self._due: Counter[object] = Counter()
        self._deadline, self._stopped_until = math.inf, 0.0
        self._longest, self._workers = 0.0, 1  # of the present map: its longest job, and the workers that it needs
        self._requested = 0  # by actions that were not done yet

    @property
    def slowness(self) -> float:
        """Factor of the durations of the slowest workers."""
        return 10.0 if self._case.stragglers else 1.0

    @property
    def restart_s(self) -> float:
        """Longest time until a new worker has its first jobs."""
        return self._case.late_s + _BUILD_S + 2 * TICK_S + self.lag_s

    @property
    def no_answer_s(self) -> float:
        """Longest time until a recall without an answer counts as refused."""
        return _RECALL_S + 2 * TICK_S + self.lag_s

    # ---- time

    def map_begins(self, jobs: Iterable[SimulatedJob]) -> None:
        """A map begins: by when must it have ended, if nothing happens?"""
        left = [sum(job.size for job in life.held.values()) for life in self._truth.lives.values()]
        sizes = [job.size for job in jobs]
        self._workers = min(self._case.workers, len(sizes))
        work = (sum(sizes) + sum(left)) / (self._workers * self._case.lanes)
        ready = sum(1 for life in self._truth.lives.values() if life.built and self._is_fit(life))
        self._deadline = self._cluster.now + 1.0 + (self.restart_s if ready < self._workers else self.lag_s)
        self._deadline += (1.05 * work + max(sizes) + max(left, default=0.0)) * self.slowness
        self._longest = max(sizes)
        for life in self._truth.lives.values():
            if life.frozen:  # since an earlier map, and the driver may not know it
                self.allow(life.known_in_s, 1)

    def allow(self, seconds: float, lost_workers: float = 0.0, redone: int = 1) -> None:
        """Allow a map to take longer, because of a fault.

        Args:
            seconds: Seconds until the scheduler knows.
            lost_workers: Number of workers that are replaced.
            redone: Number of jobs that are run again one after the other.
        """
        again = redone * 2 * self._longest * self.slowness
        self._deadline += seconds + self.lag_s + again + self.restart_s * min(1.0, lost_workers / self._workers)

    def stop(self, seconds: float) -> None:
        """The driver is stopped for some time."""
        self._stopped_until = self._cluster.now + seconds
        self.excuse(seconds)

    def excuse(self, seconds: float) -> None:
        """Workers may idle for some time."""
        self._truth.excused_until = max(self._truth.excused_until, self._cluster.now + seconds)

    # ---- decisions

    def action(self, action: Action) -> None:
        """Check an action before it is done."""
        if isinstance(action, Request):
            wanted, present = self._wanted(), self._present()
            self._requested += action.count
            if present + action.count > wanted:
                raise Violated(f"{action.count} workers are requested in addition to {present}; {wanted} are wanted")
        elif isinstance(action, Send):
            self._check_send(action)
        elif isinstance(action, Recall):
            if (life := self._truth.lives.get(action.worker)) is not None:
                life.recalled.update(action.ids)
                if life.frozen:  # idle workers wait for its answer; then jobs are run elsewhere, also if it began them
                    self.excuse(self.no_answer_s)
                    self._truth.explained.update(action.ids)
        elif isinstance(action, End):
            self._check_end(action.worker)

    def after_decision(self, *, tick: bool) -> None:
        """Check the workers after the driver has acted."""
        if tick:
            self._check_requests()
            self._check_leaving()
            self._check_slow()
            if self._cluster.now > max(self._deadline, self._truth.excused_until):
                raise Violated(f"{len(self._truth.missing)} jobs have no result by {self._deadline:.1f} s")
        self._requested = 0
        if tick or self._case.workers <= FEW:
            for life in self._truth.lives.values():
                if life.built and not life.frozen and life.worker.alive:
                    self._check_idle(life)
                    self._check_kept(life)

    def _check_send(self, action: Send) -> None:
        life = self._truth.lives.get(action.worker)
        if life is None:
            raise Violated(f"{action.worker.where()} was ended, and gets a message")
        jobs = [ticket.id for ticket in action.tickets]
        new = [job for job in jobs if job not in life.held]
        if new and life.leaves_at < math.inf:
            raise Violated(f"{life.worker.where()} must leave its node, and gets {_names(new)}")
        if new and life.copied:
            raise Violated(f"{life.worker.where()} has not answered since its jobs were copied, and gets {_names(new)}")
        known = [job for job in jobs if job in life.held and job not in life.recalled]
        if known and not life.empty_answer:
            raise Violated(f"{life.worker.where()} gets {_names(known)}, which it has")
        for job in new:
            self._check_last_try(job)
            for other in self._truth.holders(job):
                if other is not life and not other.unreachable and job not in other.recalled:
                    other.copied = True
                    self._truth.explained[job] += 1
        self._truth.sent(life, action.tickets)

    def _check_last_try(self, job: int) -> None:
        """A job on its last try is not begun elsewhere before the fate of a lost worker is known, or is late."""
        for life in self._truth.holders(job):
            failures = self._truth.tries[job] + self._truth.unresolved(job, life, surely=True)
            silent_s = self._cluster.clock - life.unreachable_at
            ran = job in life.ran_when_frozen and not life.unsure(job)
            if ran and failures >= self._case.max_attempts - 1 and 0 <= silent_s < REPORT_S:
                raise Violated(f"job {job} gets another last try {silent_s:.1f} s after {life.worker.where()} was lost")

    def _check_end(self, worker: SimulatedWorker) -> None:
        life = self._truth.lives.get(worker)
        if life is None:
            return
        if life.up and not life.unreachable:
            if life.leaves_at == math.inf:
                raise Violated(f"{worker.where()} is ended for no reason")
            kept = [job for job in life.held if job not in life.recalled]
            if kept:
                raise Violated(f"{worker.where()} is ended, and has {_names(kept)}")
        self._truth.ended(life)

    # ---- at each tick

    def before_tick(self) -> None:
        """Note what may follow from the time that has passed."""
        self._truth.expire()
        limit = self._truth.slow_after_s(surely=False)
        for life in self._truth.lives.values():
            if life.held and self._cluster.clock - life.heard_at > limit:
                life.maybe_slow = True

    def _wanted(self) -> int:
        return min(self._case.workers, len(self._truth.missing))

    def _present(self) -> int:
        return sum(1 for life in self._truth.lives.values() if not life.unreachable and life.leaves_at == math.inf)

    def _check_requests(self) -> None:
        wanted, present = self._wanted(), self._present()
        present += self._requested
        if self._is_due("requests", present < wanted):
            raise Violated(f"{present} workers are there, and nobody requests others; {wanted} are wanted")

    def _check_leaving(self) -> None:
        for life in self._truth.lives.values():
            if life.leaves_at == math.inf or life.unreachable:
                continue
            if self._is_due((life, "end"), not life.held):
                raise Violated(f"{life.worker.where()} must leave its node, has no jobs and is not ended")
            if self._is_due((life, "recall"), bool(life.worker.inbox) and not life.frozen and self._case.orderly):
                raise Violated(f"{life.worker.where()} must leave its node, and no jobs are recalled from it")

    def _check_slow(self) -> None:
        """A job on a worker that was silent for long is run elsewhere as well, if a worker has nothing to do."""
        truth, limit, clock = self._truth, self._truth.slow_after_s(surely=True), self._cluster.clock
        if truth.fresh or truth.again or limit == math.inf:
            self._due.pop("slow", None)
            return
        vacant = any(not life.held and self._is_fit(life) for life in truth.lives.values())
        slow = [
            job
            for life in (truth.lives.values() if vacant else ())
            if not life.unreachable
            and clock - life.heard_at > limit + (_BATCHING_DELAY_S if life.worker.inbox else 0.0)
            for job in life.begun
            if job in truth.missing and len(truth.holders(job)) == 1 and not truth.explained[job]
        ]
        # Idle workers may wait for jobs that a worker which hangs was asked to release.
        if self._is_due("slow", bool(slow) and self._cluster.now > truth.excused_until):
            raise Violated(f"{_names(slow)}: the worker has been silent for long, another one idles")

    def _is_due(self, what: Hashable, due: bool) -> bool:
        """Whether something has been due at too many ticks in a row."""
        self._due[what] = self._due[what] + 1 if due else 0
        return self._due[what] > _TICKS and self._cluster.now > self._stopped_until + _TICKS * TICK_S

    # ---- workers

    def _is_fit(self, life: Life) -> bool:
        fit = life.built and life.worker.alive and not (life.frozen or life.maybe_slow or life.copied)
        return fit and life.leaves_at == math.inf and self._can_stay(life.worker)

    def _check_idle(self, life: Life) -> None:
        """No lane is free for long while a job waits that fits, or lies before another worker."""
        truth, now = self._truth, self._cluster.now
        if life.worker.is_blocked:
            life.blocked_until = now
        waits = min(truth.fresh_since, truth.again_since)
        vacant_s = now - max(life.vacant_since, waits, truth.excused_until)
        free_s = now - max(life.free_since, truth.fresh_since, truth.excused_until, life.blocked_until)
        idle_s = max(vacant_s, free_s)
        if idle_s <= self._idle_s or not self._is_fit(life):
            return
        jobs = [*truth.fresh, *truth.again]
        raise Violated(f"{life.worker.where()} idles for {idle_s:.3f} s while {_names(jobs)} wait")

    def _check_kept(self, life: Life) -> None:
        """No result is kept for long."""
        kept_s = self._cluster.now - max(life.worker.kept_since, self._truth.excused_until)
        if kept_s > _BATCHING_DELAY_S + self.lag_s and any(
            result[0] not in life.recalled for result in life.worker.kept
        ):
            raise Violated(f"{life.worker.where()} has results, and nobody has requested them for {kept_s:.1f} s")

    def begun(self, life: Life, job: int) -> None:
        """Check a job that was just begun."""
        if not self._case.orderly:
            return
        runs = [each for each in self._truth.runs(job) if job in each.worker.running]
        runs = [each for each in runs if not each.unreachable and job not in each.recalled]
        if len(runs) > 2:
            raise Violated(f"job {job} runs on {len(runs)} workers at once")

    # ---- the end of a map

    def map_ends(self) -> None:
        """Check how often jobs were begun, and whether workers had jobs ahead."""
        truth, case = self._truth, self._case
        if case.orderly:
            for job, begins in truth.begins.items():
                if begins > 1 + truth.explained[job]:
                    raise Violated(f"job {job} was begun {begins} times, for which there was no reason")
        prompt = case.calm and 2 * case.delay_s * case.lanes < 0.2 and truth.ends >= _ENOUGH
        if prompt and truth.ran_dry > truth.ends / 2:
            raise Violated(f"{truth.ran_dry} of {truth.ends} jobs ended at workers without another one")


def _names(jobs: Sequence[int]) -> str:
    return f"{len(jobs)} job{'s' if len(jobs) > 1 else ''} ({', '.join(map(str, jobs[:4]))})"
