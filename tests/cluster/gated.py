"""An environment that pauses while a gate is closed. Every worker imports this module, so it is small."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from actors.worker_identity import session_logs
from pipeline.config.schema import EnvConfig
from pipeline.envs.environment import Step
from tests.counting import CountingEnv

ENV_ID = "tests.cluster.gated:GatedEnv"

_ALL = "all"


def gates_folder() -> Path:
    """The folder of the gates: the session's folder, which all nodes of a cluster on one machine share."""
    return session_logs().parent


def gate(folder: Path, node: str = _ALL) -> Path:
    """The gate of one node's environments, or of all: they pause while this file exists."""
    return folder / f"gate@{node}"


def open_all_gates() -> None:
    """Resume all environments, and remove the notes of paused ones."""
    for kind in ("gate", "blocked"):
        for file in gates_folder().glob(f"{kind}@*"):
            file.unlink(missing_ok=True)


class GatedEnv(CountingEnv):
    """``CountingEnv`` that pauses while a gate is closed, and notes that it does."""

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self._gates: list[Path] = []
        if ray.is_initialized():
            node, folder = ray.get_runtime_context().get_node_id(), gates_folder()
            self._gates = [gate(folder), gate(folder, node)]
            self._note = folder / f"blocked@{node}@{os.getpid()}"

    def step(self, action: NDArray[np.float32]) -> Step:
        while any(closed.exists() for closed in self._gates):
            self._note.touch()
            time.sleep(0.01)
        return super().step(action)
