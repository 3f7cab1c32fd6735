"""A run's metrics as metrics of Ray, which every node serves to Prometheus; ``cluster/grafana`` shows them.

There a gauge is called ``ray_world_models_NAME``, a counter ``ray_world_models_NAME_total``. A counter begins at 0 with
each driver, and is not there before it has counted anything: Ray takes no zeros.
"""

from __future__ import annotations

from typing import Any, Final

from ray.util.metrics import Counter, Gauge

from pipeline.base.progress import Counted, Measured, Metrics

# With the tags `run` and `stage`.
OF_STAGES: Final[dict[Counted | Measured, tuple[type[Any], str]]] = {
    "episodes": (Counter, "Episodes driven"),
    "env_steps": (Counter, "Steps of the environment in these episodes"),
    "encoded_frames": (Counter, "Frames turned into latents"),
    "progress_ratio": (Gauge, "How much of the stage is done, from 0 to 1"),
    "generation": (Gauge, "Generations that CMA-ES was told of"),
    "fitness_mean": (Gauge, "Mean fitness of the last generation's candidates"),
    "fitness_max": (Gauge, "Highest fitness of the last generation's candidates"),
    "validation_mean": (Gauge, "Mean return on the validation tracks, when last driven there"),
    "sigma": (Gauge, "Step size of CMA-ES"),
    "loss": (Gauge, "Training loss of the last batch that was logged"),
    "held_out_loss": (Gauge, "Loss on the held-out episodes after the last epoch"),
}
# With the tag `run`.
OF_WORKERS: Final[dict[str, tuple[type[Any], str]]] = {
    "workers": (Gauge, "Workers that are there"),
    "retries": (Counter, "Times that a job or a task was tried again"),
    "preemptions": (Counter, "Workers that left a node before its end or were lost with it"),
    "worker_failures": (Counter, "Workers that died, hung or were given up on a node that stayed"),
}


class Telemetry:
    """The metrics of a run, exported by the node that its driver is on. Needs a connection (``ray.init``).

    Args:
        run: its name.
    """

    def __init__(self, run: str) -> None:
        tags = {"run": run}
        self._of_stages = {
            name: kind(f"world_models_{name}", what, ("run", "stage")).set_default_tags(tags)
            for name, (kind, what) in OF_STAGES.items()
        }
        self._of_workers = {
            name: kind(f"world_models_{name}", what, ("run",)).set_default_tags(tags)
            for name, (kind, what) in OF_WORKERS.items()
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
        """How many there are now."""
        self._of_workers["workers"].set(number)

    def retried(self, jobs: int) -> None:
        """So many jobs or tasks will be tried again."""
        if jobs:
            self._of_workers["retries"].inc(jobs)

    def lost_worker(self, *, preempted: bool) -> None:
        """A worker is gone that was not meant to go.

        Args:
            preempted: because of its node's end; otherwise it failed by itself.
        """
        self._of_workers["preemptions" if preempted else "worker_failures"].inc()
