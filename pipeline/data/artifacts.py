"""Outputs of the stages in a run directory: folders, and names of the objects in them."""

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

# Starts of names that end with a generation, or with a generation and a number of test episodes.
CONTROLLERS, HISTORY = "controllers-", "history-"
TEST_EPISODES, SUMMARY, DRIVE = "episodes-", "summary-", "drive-"


def shard_name(index: int) -> str:
    """Name of a shard of frames and of the shard of their latents."""
    return f"shard-{index:05d}.parquet"


def vae_weights(store: Store) -> bytes:
    """Verified weights of V as safetensors.

    Raises:
        StorageError: The stage is not complete.
        DamagedDataError: The weights are missing or changed.
    """
    return read_verified(store, require_manifest(store, VAE).records[VAE_WEIGHTS])


def mdnrnn_weights(store: Store) -> bytes:
    """Verified weights of M as safetensors.

    Raises:
        StorageError: The stage is not complete.
        DamagedDataError: The weights are missing or changed.
    """
    return read_verified(store, require_manifest(store, MDNRNN).records[MDNRNN_WEIGHTS])
