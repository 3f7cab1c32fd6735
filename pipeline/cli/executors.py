"""Construction of the executor that a config selects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.schema import ExecutionConfig, RunConfig
    from pipeline.execution.protocol import Executor


def make_executor(config: RunConfig) -> Executor:
    """Make the executor of a config; a run that joins no cluster gets its own local Ray."""
    if config.execution.executor == "in-process":
        from pipeline.execution.in_process import InProcessExecutor

        return InProcessExecutor(config.execution.max_attempts)
    if not config.execution.joins_cluster:
        prepare_local_ray(config.execution)
    from actors.executor import RayExecutor

    return RayExecutor(config.execution, config.name, max(config.vae.threads, config.mdnrnn.threads))


def prepare_local_ray(execution: ExecutionConfig) -> None:
    """Set the environment of a local Ray of our own, before Ray is imported."""
    # Servers on loopback only: by default Ray picks an address that other machines can reach. No tokens, regardless of
    # the user's settings for clusters. Workers have the configured priority: at Ray's default, nice 15, one busy
    # program starves them.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_worker_niceness"] = str(execution.niceness)  # noqa: SIM112 - its name
