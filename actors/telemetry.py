"""A run's metrics as Ray metrics, which every node serves to Prometheus; ``cluster/grafana`` shows them.

In Prometheus a gauge is called ``ray_world_models_NAME``, a counter ``ray_world_models_NAME_total``. Each driver starts
its counters at 0. A counter is absent until it has counted something, because Ray does not accept zeros.
"""

from __future__ import annotations

from typing import Any, Final

from ray.util.metrics import Counter, Gauge

from pipeline.base.progress import Counted, Measured, Metrics

# With the tags `run` and `stage`.
STAGE_METRICS: Final[dict[Counted | Measured, tuple[type[Any], str]]] = {
    "episodes": (Counter, "Episodes run"),
    "env_steps": (Counter, "Environment steps in these episodes"),
    "encoded_frames": (Counter, "Frames encoded into latents"),
    "progress_ratio": (Gauge, "Completed fraction of the stage, from 0 to 1"),
    "generation": (Gauge, "Completed CMA-ES generations"),
    "fitness_mean": (Gauge, "Mean fitness of the last generation's candidates"),
    "fitness_max": (Gauge, "Highest fitness of the last generation's candidates"),
    "validation_mean": (Gauge, "Mean return of the last validation"),
    "sigma": (Gauge, "Step size of CMA-ES"),
    "loss": (Gauge, "Training loss of the last logged batch"),
    "held_out_loss": (Gauge, "Loss on the held-out episodes after the last epoch"),
}
# With the tag `run`.
WORKER_METRICS: Final[dict[str, tuple[type[Any], str]]] = {
    "workers": (Gauge, "Workers that are ready"),
    "retries": (Counter, "Retries of jobs and tasks"),
    "preemptions": (Counter, "Workers that left a draining node or were lost with their node"),
    "worker_failures": (Counter, "Workers that died, hung or were discarded on a node that stayed"),
}


class Telemetry:
    """Metrics of a run, exported by the driver's node. Needs a connection (``ray.init``).

    Args:
        run: Name of the run.

    Attributes:
        ready_workers: Present number of workers.
    """

    def __init__(self, run: str) -> None:
        self.ready_workers = 0
        tags = {"run": run}
        self._of_stages = {
            name: kind(f"world_models_{name}", what, ("run", "stage")).set_default_tags(tags)
            for name, (kind, what) in STAGE_METRICS.items()
        }
        self._of_workers = {
            name: kind(f"world_models_{name}", what, ("run",)).set_default_tags(tags)
            for name, (kind, what) in WORKER_METRICS.items()
        }

    def publish(self, stage: str, metrics: Metrics) -> None:
        """See ``pipeline.execution.protocol.Executor.publish``."""
        tags = {"stage": stage}
        for name, value in metrics.items():
            metric = self._of_stages[name]
            if isinstance(metric, Gauge):
                metric.set(value, tags)
            elif value:
                metric.inc(value, tags)

    def workers(self, number: int) -> None:
        """Set the present number of workers."""
        self.ready_workers = number
        self._of_workers["workers"].set(number)

    def retried(self, jobs: int) -> None:
        """Count jobs or tasks that will be tried again."""
        if jobs:
            self._of_workers["retries"].inc(jobs)

    def lost_worker(self, *, preempted: bool) -> None:
        """Count the unplanned loss of a worker.

        Args:
            preempted: Whether the worker was lost because its node went away; otherwise it failed by itself.
        """
        self._of_workers["preemptions" if preempted else "worker_failures"].inc()
