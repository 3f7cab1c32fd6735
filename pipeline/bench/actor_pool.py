"""A plain loop over Ray's own ``ActorPool``: the baseline of the production pool in ``bench fanout``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.execution.protocol import Worker


@contextmanager
def actor_pool(
    factory: Callable[[], Worker], first_jobs: Sequence[Any]
) -> Iterator[Callable[[Sequence[Any]], Iterable[Any]]]:
    """Start workers of one CPU each, and run the first job of each.

    An actor gets its next job when it has returned its result, as in Ray's documentation.

    Args:
        factory: Function that makes a worker.
        first_jobs: First job of each worker.

    Yields:
        A function that maps jobs over the workers.
    """

    class Plain:
        def __init__(self) -> None:
            self._worker = factory()

        def run(self, job: Any) -> Any:
            return next(iter(self._worker.run([job])))

    remote = ray.remote(num_cpus=1)(Plain)
    actors = [remote.remote() for _ in first_jobs]
    try:
        ray.get([actor.run.remote(job) for actor, job in zip(actors, first_jobs, strict=True)])
        pool = ray.util.ActorPool(actors)

        def map_jobs(jobs: Sequence[Any]) -> Iterable[Any]:
            results: Iterable[Any] = pool.map_unordered(lambda actor, job: actor.run.remote(job), jobs)
            return results

        yield map_jobs
    finally:
        for actor in actors:
            ray.kill(actor)
