"""A trained run, for benches that drive its controllers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import CONTROLLERS, EVOLUTION, mdnrnn_weights, vae_weights
from pipeline.evolution.search import Search
from pipeline.evolution.state import EvolutionState
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.manifest import newest, read_verified, require_manifest
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


@dataclass(frozen=True)
class TrainedRun:
    """What a run came to.

    Attributes:
        config: its own.
        vae_weights, mdnrnn_weights: safetensors bytes.
        search: CMA-ES after the last generation.
        controller: (n,) float32, the one that validated best.
    """

    config: RunConfig
    vae_weights: bytes
    mdnrnn_weights: bytes
    search: Search
    controller: NDArray[np.float32]

    @classmethod
    def read(cls, store: Store) -> TrainedRun:
        """From a run directory.

        Raises:
            ConfigError: nothing was evolved there.
        """
        latest = Checkpoints(store, EVOLUTION).latest()
        if latest is None:
            raise ConfigError(
                f"{store.locate()} holds no evolution, and this bench drives the controllers of a run: "
                "`world-models run laptop` makes a good one, `make demo` a weak one; name it by --run-dir"
            )
        controllers = newest(require_manifest(store, EVOLUTION).records, CONTROLLERS)
        assert controllers is not None
        return cls(
            config=saved_config(store),
            vae_weights=vae_weights(store),
            mdnrnn_weights=mdnrnn_weights(store),
            search=EvolutionState.from_bytes(latest[1]).search,
            controller=load(read_verified(store, controllers))["best"],
        )
