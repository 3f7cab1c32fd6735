"""The agent that a run has trained: its weights and its controllers, for everything that loads one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVOLUTION, MDNRNN, controllers_of, controllers_record, mdnrnn_weights, vae_weights
from pipeline.data.rounds import Round, latest_round, vae_folder
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


@dataclass(frozen=True)
class TrainedAgent:
    """V, M and the controllers of a run, of the latest round that has evolved.

    Attributes:
        config: Config of the run.
        round: Round of the agent.
        vae_weights, mdnrnn_weights: Weights of V and M as safetensors bytes.
        controllers: Parameters by name, (n,) float32 each: ``mean``, the CMA mean, and ``best``, which validation
            chose, if a generation was validated.
    """

    config: RunConfig
    round: Round
    vae_weights: bytes
    mdnrnn_weights: bytes
    controllers: Mapping[str, NDArray[np.float32]]

    @classmethod
    def read(cls, store: Store) -> TrainedAgent:
        """Read the agent of a run.

        Raises:
            StorageError: There is no run, or it has not evolved yet.
            DamagedDataError: Weights or controllers are missing or changed.
        """
        config = saved_config(store)
        at = latest_round(config.rounds, store, EVOLUTION)
        evolution = at.folder(EVOLUTION)
        names = ["mean"]
        if controllers_record(store, evolution).info["best_generation"] is not None:
            names = ["best", "mean"]
        tensors = controllers_of(store, evolution)
        return cls(
            config,
            at,
            vae_weights(store, vae_folder(config.rounds, at)),
            mdnrnn_weights(store, at.folder(MDNRNN)),
            {name: tensors[name] for name in names},
        )

    def controller(self, name: str | None = None) -> NDArray[np.float32]:
        """Parameters of a controller, (n,) float32.

        Args:
            name: ``best`` or ``mean``; None for the best, or the mean if no generation was validated.

        Raises:
            ConfigError: The run has no such controller.
        """
        found = self.controllers.get(name or min(self.controllers))  # "best" before "mean"
        if found is None:
            raise ConfigError(f"controller {name!r}: this run has {' and '.join(self.controllers)}")
        return found

    def digest(self, controller: str | None = None) -> str:
        """SHA-256 (hex) of the weights of V and M and of a controller's parameters.

        Args:
            controller: See ``controller``.

        Raises:
            ConfigError: The run has no such controller.
        """
        parts = self.vae_weights, self.mdnrnn_weights, self.controller(controller).tobytes()
        return hashlib.sha256(b"".join(parts)).hexdigest()
