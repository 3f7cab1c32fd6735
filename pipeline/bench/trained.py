"""A trained run, for benches that measure its controllers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVOLUTION
from pipeline.data.rounds import latest_round
from pipeline.data.trained_agent import TrainedAgent
from pipeline.evolution.search import Search
from pipeline.evolution.state import EvolutionState
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import CONFIG
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


@dataclass(frozen=True)
class TrainedRun:
    """Results of a run, of the last round that has evolved.

    Attributes:
        config: Config of the run.
        vae_weights, mdnrnn_weights: Weights of V and M, as safetensors bytes.
        search: State of CMA-ES after the last generation.
        controller: Parameters of the controller with the best validation, (n,) float32.
    """

    config: RunConfig
    vae_weights: bytes
    mdnrnn_weights: bytes
    search: Search
    controller: NDArray[np.float32]

    @classmethod
    def read(cls, store: Store) -> TrainedRun:
        """Read a run directory.

        Raises:
            ConfigError: The run has no evolution.
        """
        latest = None
        if store.exists(CONFIG):
            config = saved_config(store)
            at = latest_round(config.rounds, store, EVOLUTION)
            latest = Checkpoints(store, at.folder(EVOLUTION)).latest()
        if latest is None:
            raise ConfigError(
                f"{store.locate()} holds no evolution, but this bench measures the controllers of a run. Create a good "
                "run with `world-models run laptop`, or a weak one with `make demo`, and pass it with --run-dir."
            )
        trained = TrainedAgent.read(store)
        return cls(
            config=trained.config,
            vae_weights=trained.vae_weights,
            mdnrnn_weights=trained.mdnrnn_weights,
            search=EvolutionState.from_bytes(latest[1]).search,
            controller=trained.controller(),
        )
