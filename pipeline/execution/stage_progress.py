"""A stage as people watch it: its progress on the terminal, its metrics on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.base.progress import Progress, Update
from pipeline.execution.protocol import Executor


@contextmanager
def watched(executor: Executor, stage: str, unit: str) -> Iterator[Callable[[Update], None]]:
    """Show a stage's updates and publish their metrics.

    Args:
        executor: Executor that publishes the metrics.
        stage: Name of the stage.
        unit: Name of one unit, for example ``"frame"``.

    Yields:
        A function that is called with each update; cheap enough to call for every result.
    """
    with Progress(stage, unit) as show:

        def watch(update: Update) -> None:
            executor.publish(stage, {"progress_ratio": update.done / update.total, **update.metrics})
            show(update)

        yield watch
