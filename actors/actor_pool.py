"""Ray's own ``ActorPool`` as a plain loop over it is: what ``bench fanout`` holds the production pool against."""

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
    """Workers of one CPU each, up and each through its first job; a function that maps jobs over them.

    An actor is given its next job when it has given its result, as Ray's documentation shows it.

    Args:
        factory: makes a worker.
        first_jobs: one for each worker.
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
