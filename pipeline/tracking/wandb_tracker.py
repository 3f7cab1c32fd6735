"""A run in Weights & Biases, online or offline as ``WANDB_MODE`` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from pipeline.tracking.tracker import Point, page_file, rows_of


class WandbTracker:
    """See ``pipeline.tracking.tracker.Tracker``.

    Args:
        run: ``wandb.Run``.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._stages: set[str] = set()  # whose steps W&B knows

    def marks(self) -> Mapping[str, int]:
        """See ``Tracker.marks``."""
        return {}

    def log(self, points: Sequence[Point]) -> None:
        """See ``Tracker.log``."""
        for stage, step, values in rows_of(points):
            if stage not in self._stages:
                # W&B's own step counts the rows of all stages.
                self._run.define_metric(f"{stage}/step")
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                self._stages.add(stage)
            self._run.log({f"{stage}/step": step, **values})

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        """See ``Tracker.finish``."""
        import wandb

        self._run.summary.update(dict(scores))
        with ExitStack() as files:  # until the end, which reads them
            if report is not None:
                artifact = wandb.Artifact(f"report-{self._run.id}", type="report")
                artifact.add_file(files.enter_context(page_file(report)))
                self._run.log_artifact(artifact)
            self._run.finish(exit_code=int(failed))


def make(*, project: str, run: str, run_id: str, config: Mapping[str, Any]) -> WandbTracker:
    """Begin or continue a run, see ``make_tracker``."""
    import wandb

    settings = wandb.Settings(silent=True, console="off", disable_git=True)
    begun = wandb.init(
        project=project,
        name=run,
        id=run_id,
        resume="allow",
        config=dict(config),
        settings=settings,
        reinit="create_new",
    )
    return WandbTracker(begun)
