"""What each stage leaves in a run directory: the folders, and the names of the objects in them."""

from __future__ import annotations

from pipeline.storage.manifest import read_verified, require_manifest
from pipeline.storage.store import Store

ROLLOUTS = "rollouts"
VAE = "vae"
LATENTS = "latents"
MDNRNN = "mdnrnn"
EVOLUTION = "evolution"
EVALUATION = "evaluation"
REPORT = "report"

VAE_WEIGHTS = "vae.safetensors"
RECONSTRUCTIONS = "reconstructions.png"
MDNRNN_WEIGHTS = "mdnrnn.safetensors"

# Beginnings of names that end with a generation, or with a generation and a number of test episodes.
CONTROLLERS, HISTORY = "controllers-", "history-"
TEST_EPISODES, SUMMARY, DRIVE = "episodes-", "summary-", "drive-"


def shard_name(index: int) -> str:
    """Name of a shard of frames, and of the shard of their latents."""
    return f"shard-{index:05d}.parquet"


def vae_weights(store: Store) -> bytes:
    """V's weights as safetensors, verified.

    Raises:
        StorageError: the stage is not complete.
        DamagedDataError: the weights are missing or changed.
    """
    return read_verified(store, require_manifest(store, VAE).records[VAE_WEIGHTS])


def mdnrnn_weights(store: Store) -> bytes:
    """M's weights as safetensors, verified; errors as in ``vae_weights``."""
    return read_verified(store, require_manifest(store, MDNRNN).records[MDNRNN_WEIGHTS])
