"""Lanes in lockstep: the loop that gives jobs to lanes, in the environment and in dreams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult


class Lanes(Protocol):
    """Lanes that act together. The active ones occupy the slots 0 .. n-1.

    Attributes:
        num_lanes: Maximum number of active lanes.
    """

    num_lanes: int

    def begin(self, slot: int, job: RolloutJob) -> None:
        """Begin a job's episode in a slot that is free."""

    def act(self, active: int) -> Iterator[tuple[int, RolloutResult]]:
        """Act once in each of the first ``active`` slots.

        Yields:
            Slot and result of each episode that ended, from the last slot down. Its slot is free from then on.
        """

    def move(self, source: int, target: int) -> None:
        """Move an episode to a slot that is free."""


def run_in_lockstep(lanes: Lanes, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
    """Run every job's episode, yielding (job ID, result) as each ends.

    A lane whose episode ends takes the next job. If there is none, the last active lane moves into its slot.
    """
    waiting = iter(jobs)
    ids: list[JobId] = []
    while True:
        while len(ids) < lanes.num_lanes and (job := next(waiting, None)) is not None:
            lanes.begin(len(ids), job)
            ids.append(job.id)
        if not ids:
            return
        # From the last slot down, so that a lane that moves into a freed slot has already acted.
        for slot, result in lanes.act(len(ids)):
            yield ids[slot], result
            job = next(waiting, None)
            if job is not None:
                lanes.begin(slot, job)
                ids[slot] = job.id
            else:
                last = len(ids) - 1
                if slot != last:
                    lanes.move(last, slot)
                    ids[slot] = ids[last]
                ids.pop()
