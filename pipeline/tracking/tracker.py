"""The tracker protocol, and the trackers by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.base.errors import ConfigError


@dataclass(frozen=True)
class Point:
    """One value of a metric.

    Attributes:
        metric: Name of the metric, such as ``vae/loss``.
        step: Step of the stage.
        value: Finite value.
        time: Unix time in seconds.
    """

    metric: str
    step: int
    value: float
    time: float


class Tracker(Protocol):
    """A run in an experiment tracker. It is continued by every later tracker with the same ID."""

    def marks(self) -> Mapping[str, int]:
        """Last step of each metric that the tracker is known to have; empty if it cannot be asked."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points; within a metric, steps ascend."""

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        """End the session.

        Args:
            scores: Final scores by name; empty if there are none yet, or if an earlier session gave them.
            report: The report's page; None likewise.
            failed: Whether the session ended with an error.
        """


# The module that each tracker imports; ``world-models-ray[NAME]`` installs it.
MODULES = {"mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of some trackers are installed.

    Raises:
        ConfigError: One is not; the message names the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ConfigError(
                f"metrics.trackers: {name} is not installed here. Install it: pip install 'world-models-ray[{name}]'"
            )


def make_tracker(name: str, *, project: str, run: str, run_id: str, config: Mapping[str, Any]) -> Tracker:
    """Begin or continue a run in a tracker.

    Args:
        name: Name of the tracker, a key of ``MODULES``.
        project: Name of the project, or of the experiment.
        run: Name of the run.
        run_id: ID of the run, the same in all of its sessions.
        config: Values of the config by dotted key.
    """
    module = importlib.import_module(f"pipeline.tracking.{name}_tracker")
    tracker: Tracker = module.make(project=project, run=run, run_id=run_id, config=config)
    return tracker
