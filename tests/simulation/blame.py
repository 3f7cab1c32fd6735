"""Which jobs are blamed for a failure, how often they are tried again, and when a map gives up."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.base.errors import EpisodeError, JobError
from pipeline.execution.failures import Failure, FailureKind
from pipeline.execution.scheduler import Scheduler
from tests.simulation.cases import Case
from tests.simulation.truth import Life, Truth, Violated


class Blame:
    """Compares the scheduler's account of each failure with the true one.

    Args:
        case: Case.
        scheduler: Scheduler.
        truth: True state of the cluster.
    """

    def __init__(self, case: Case, scheduler: Scheduler, truth: Truth) -> None:
        self._case, self._scheduler, self._truth = case, scheduler, truth
        self._retries = self._failed_starts = self._raised_starts = 0

    def was_built(self) -> None:
        """A worker is built: failed starts are counted from zero."""
        self._failed_starts = self._raised_starts = 0

    def no_failure(self) -> None:
        """Check that nothing was counted since the last failure, unless a worker is unreachable."""
        if self._scheduler.retries == self._retries:
            return
        if not any(life.unreachable for life in self._truth.lives.values()):
            raise Violated(f"{self._scheduler.retries - self._retries} jobs are tried again for no reason")
        self._retries = self._scheduler.retries

    def check(self, life: Life | None, failure: Failure, handle: Callable[[], None], *, lost: bool) -> None:
        """Have a failure handled, and check what follows from it.

        Args:
            life: Worker; None if it was ended.
            failure: Failure.
            handle: Function that has the scheduler handle it.
            lost: Whether the worker's node is known to be lost or drained.

        Raises:
            JobError: There is reason for it.
            Violated: Something is wrong.
        """
        before, retries = self._failures(), self._scheduler.retries
        for job, count in before.items():
            if count != self._truth.tries[job]:
                raise Violated(f"job {job} was blamed {count} times, and not only when it failed")
        error: JobError | None = None
        try:
            handle()
        except JobError as raised:
            error = raised
        after = self._failures()
        blamed = [job for job, count in after.items() if count != before[job]]
        if any(after[job] != before[job] + 1 for job in blamed):
            raise Violated(f"jobs are blamed more than once for one failure: {blamed}")
        self._retries = self._scheduler.retries
        if life is None:
            if blamed or error or self._retries != retries:
                raise Violated("the failure of a worker that was ended has consequences")
            return
        lost = lost and failure.kind in (FailureKind.WORKER_LOST, FailureKind.UNREACHABLE)
        if life.built:
            self._check_blamed(life, failure, blamed, lost=lost)
            self._check_gives_up(max((after[job] for job in blamed), default=0), error)
        else:
            self._check_failed_start(failure, blamed, error, lost=lost)
        if error is None:
            self._check_retries(life, failure, blamed, self._retries - retries, lost=lost)
        for job in blamed:
            self._truth.tries[job] += 1
        if error is not None:
            raise error

    def _failures(self) -> dict[int, int]:
        return {job: entry.failures for job, entry in self._scheduler.jobs._entries.items()}

    def _ran(self, life: Life, failure: Failure) -> set[int]:
        """IDs of the jobs that surely caused a failure, or ran when it happened, as the driver can know."""
        ran = {job for job in life.ran_when_frozen if job in self._truth.missing and not life.maybe_slow}
        if isinstance(failure.cause, EpisodeError):
            return {job for job in ran if self._is_named(job, failure.cause)}
        # A worker that kept results was thought to run their jobs; the same if jobs came in another order.
        known = life.worker.alive or life.kept_when_frozen or life.disordered or not self._case.orderly
        return set() if known or life.unreachable else ran

    def _check_blamed(self, life: Life, failure: Failure, blamed: list[int], *, lost: bool) -> None:
        """Blamed jobs may have run, and all jobs that did run are blamed."""
        where = life.worker.where()
        if lost:
            if blamed:
                raise Violated(f"{where} was lost with its node, and the jobs {blamed} are blamed")
            return
        if len(blamed) > self._case.lanes:
            raise Violated(f"{where} has {self._case.lanes} lanes, and {len(blamed)} jobs are blamed")
        waiting = {ticket.id for ticket in life.worker.inbox} if not life.disordered else set()
        innocent = [job for job in blamed if job not in life.held_when_frozen or job in waiting]
        if innocent:
            raise Violated(f"{where} had not begun the jobs {innocent}, which are blamed")
        cause = failure.cause
        if isinstance(cause, EpisodeError) and not all(self._is_named(job, cause) for job in blamed):
            raise Violated(f"job {cause.job_id} raised, and the jobs {blamed} are blamed")
        missed = self._ran(life, failure) - set(blamed)
        if missed:
            raise Violated(f"{where} ran the jobs {missed}, and the jobs {blamed} are blamed")

    def _is_named(self, job: int, error: EpisodeError) -> bool:
        return self._truth.missing[job].id == error.job_id

    def _check_gives_up(self, tries: int, error: JobError | None) -> None:
        if error is None and tries >= self._case.max_attempts:
            raise Violated(f"a job was tried {tries} times, {self._case.max_attempts} are allowed")
        if error is not None and tries < self._case.max_attempts:
            raise Violated(f"no job was tried {self._case.max_attempts} times, but: {error}")

    def _check_failed_start(self, failure: Failure, blamed: list[int], error: JobError | None, *, lost: bool) -> None:
        if blamed:
            raise Violated(f"a worker was not built, and the jobs {blamed} are blamed")
        self._failed_starts += not lost and failure.kind is not FailureKind.UNREACHABLE
        self._raised_starts += failure.kind is FailureKind.RAISED
        if error is None and self._raised_starts >= self._case.max_attempts:
            raise Violated(f"{self._raised_starts} workers failed to start, and nobody says so")
        if error is not None and self._failed_starts < self._case.max_attempts:
            raise Violated(f"{self._failed_starts} workers failed to start, but: {error}")

    def _check_retries(self, life: Life, failure: Failure, blamed: list[int], retries: int, *, lost: bool) -> None:
        """The jobs that ran and that nobody else has are tried again, and counted."""
        if retries > (self._case.lanes if lost else len(blamed)):
            raise Violated(f"{retries} jobs are tried again; the jobs {blamed} are blamed")
        alone = [job for job in self._ran(life, failure) if len(self._truth.holders(job)) == 1]
        if retries < len(alone):
            raise Violated(f"the jobs {alone} are tried again, and {retries} are counted")
