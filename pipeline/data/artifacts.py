"""Outputs of the stages in a run directory: folders, and names of the objects in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from pipeline.base.errors import DamagedDataError
from pipeline.storage.layout import manifest_key
from pipeline.storage.manifest import Record, newest, read_verified, require_manifest
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
# Ends of the names of the two films of a drive.
VIDEO_END, GIF_END = ".mp4", ".gif"


def shard_name(index: int) -> str:
    """Name of a shard of frames and of the shard of their latents."""
    return f"shard-{index:05d}.parquet"


def controllers_name(generation: int) -> str:
    """Name of the controllers of an evolution. An evolution may grow, so names have the generation."""
    return f"{CONTROLLERS}{generation:06d}.safetensors"


def history_name(generation: int) -> str:
    """Name of an evolution's history, a row for each generation."""
    return f"{HISTORY}{generation:06d}.json"


def evaluation_tag(generation: int, episodes: int) -> str:
    """Part of the names of an evaluation's outputs: the generation of the controllers and the number of episodes."""
    return f"{generation:06d}-{episodes:06d}"


def episodes_name(tag: str) -> str:
    """Name of the test episodes of an evaluation, by its tag."""
    return f"{TEST_EPISODES}{tag}.parquet"


def summary_name(tag: str) -> str:
    """Name of the summary of an evaluation, by its tag."""
    return f"{SUMMARY}{tag}.json"


def evaluation_tag_of(summary: str) -> str:
    """Tag in the name of a summary."""
    return summary.removeprefix(SUMMARY).removesuffix(".json")


def vae_weights(store: Store, folder: str = VAE) -> bytes:
    """Verified weights of V as safetensors, from the folder of a round.

    Raises:
        StorageError: The stage is not complete.
        DamagedDataError: The weights are missing or changed.
    """
    return read_verified(store, require_manifest(store, folder).records[VAE_WEIGHTS])


def mdnrnn_weights(store: Store, folder: str = MDNRNN) -> bytes:
    """Verified weights of M as safetensors, from the folder of a round.

    Raises:
        StorageError: The stage is not complete.
        DamagedDataError: The weights are missing or changed.
    """
    return read_verified(store, require_manifest(store, folder).records[MDNRNN_WEIGHTS])


def controllers_record(store: Store, folder: str = EVOLUTION) -> Record:
    """Record of the newest controllers of an evolution; errors as for ``newest_record``."""
    return newest_record(store, folder, CONTROLLERS)


def newest_record(store: Store, folder: str, start: str) -> Record:
    """Last record of a complete stage, by name, with this start of its name.

    Raises:
        StorageError: The stage is not complete.
        DamagedDataError: The stage is sealed without such a record.
    """
    record = newest(require_manifest(store, folder).records, start)
    if record is None:
        where = store.locate(manifest_key(folder))
        raise DamagedDataError(
            f"{where} names no {start}*, so this pipeline did not write it", resume_after=f"remove {where}"
        )
    return record


def controllers_of(store: Store, folder: str = EVOLUTION) -> dict[str, NDArray[np.float32]]:
    """Newest controllers of an evolution, from the folder of a round.

    Returns:
        ``mean`` and ``best``: parameters of the CMA mean and of the best on validation, (n,) float32; ``spread``:
        standard deviations of the search distribution, (n,) float32.

    Raises:
        StorageError: The stage is not complete.
        DamagedDataError: The controllers are missing or changed.
    """
    tensors: dict[str, NDArray[np.float32]] = load(read_verified(store, controllers_record(store, folder)))
    return tensors
