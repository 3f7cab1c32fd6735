"""A pack: the agent of a run and its test results, small enough to share, as a run directory for all commands.

It holds the weights of V and M, the controllers, the history of the evolution, the test episodes, the config and a
card. It holds no data of the other stages. The test episodes are played with the packed weights, so the score on the
card is that of the files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.formatting import size
from pipeline.base.statistics import Estimate, estimate, summarise
from pipeline.config.identity import this_machine
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import (
    CONTROLLERS,
    DRIVE,
    EVALUATION,
    EVOLUTION,
    GIF_END,
    HISTORY,
    MDNRNN,
    MDNRNN_WEIGHTS,
    TEST_EPISODES,
    VAE_WEIGHTS,
    newest_record,
)
from pipeline.data.rounds import Round, config_in, latest_round, vae_folder
from pipeline.execution.protocol import Executor
from pipeline.models.half_precision import to_half
from pipeline.reporting.findings import read_test_returns
from pipeline.stages import evaluate
from pipeline.stages.table import WHOLE_RUN, cost_of_run, stages_of
from pipeline.storage.layout import (
    CONFIG,
    checkpoints_prefix,
    metrics_key,
    object_folder,
    record_key,
    tensorboard_prefix,
)
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import (
    Record,
    commit,
    read_manifest,
    read_records,
    read_verified,
    require_manifest,
    seal,
)
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

MAX_BYTES = 12_000_000

# Facts of a stage that its pack keeps: the work done, and the machine and versions that give the same bits. The other
# facts concern the sessions, the workers and the places of the run's makers.
_KEPT = (
    "env_steps", "dream_steps", "seconds", "steps", "epochs", "best_epoch", "loss", "held_out", "init", "generations",
    "ended_by", "best_generation", "best_validation", "engine", "precision", "cpu", "code_version", "versions",
)  # fmt: skip
_PACK_FACTS = ("controllers", "weights", WHOLE_RUN)


@dataclass(frozen=True)
class Pack:
    """Facts about a pack.

    Attributes:
        name: Name of the agent.
        config: Config of the run, with the pack's name and without its machine.
        round: Round of the agent.
        precision: Number format of the weights of V and M: ``float16`` or ``float32``.
        score: Score of the packed agent, see ``pipeline.base.statistics.summarise``.
        own: Score of the run itself, likewise.
        difference: The packed agent minus the run, paired by track.
        whole_run: Environment steps and seconds of all stages of the run.
        made_with: CPU, code version and libraries of the run's evolution.
    """

    name: str
    config: RunConfig
    round: Round
    precision: str
    score: Mapping[str, float]
    own: Mapping[str, float]
    difference: Estimate
    whole_run: Mapping[str, float]
    made_with: Mapping[str, Any]


def make_pack(source: Store, name: str, target: LocalStore, executor: Executor) -> Pack:
    """Write the pack of a run into an empty folder, without its card.

    Weights are stored in half precision unless the evaluation shows a loss: an interval of the paired difference that
    lies below 0.

    Args:
        source: Store of the run.
        name: Name of the agent.
        target: Store of the folder.
        executor: Executor of the test episodes.

    Raises:
        StorageError: The run is not evaluated, or the pack is too large.
        DamagedDataError: Data of the run is missing or changed.
    """
    config = as_shared(saved_config(source), name)
    if config.evaluate.agent is not None:
        raise ConfigError(f"{source.locate()} evaluates an external agent: pack the run of that agent")
    at = latest_round(config.rounds, source, EVALUATION)
    own = read_test_returns(source, newest_record(source, at.folder(EVALUATION), TEST_EPISODES))
    shown = min(own)  # "best" before "mean"
    for precision in ("float16", "float32"):
        try:
            _write_agent(source, target, config, at, precision)
        except ValueError as error:  # too large for float16
            logger.warning("keeping float32: %s", error)
            _clear(target)
            continue
        info = _evaluate(source, target, config, at, executor)
        packed = read_test_returns(target, newest_record(target, at.folder(EVALUATION), TEST_EPISODES))
        difference = estimate(np.array([packed[shown]]) - np.array([own[shown]]), config.seed)
        if precision == "float32" or difference.high >= 0:
            break
        logger.warning(
            "in half precision the agent scores %.1f less (95 %% interval %.1f to %.1f): keeping float32",
            -difference.mean, difference.low, difference.high,
        )  # fmt: skip
        _clear(target)
    evolution = require_manifest(source, at.folder(EVOLUTION)).info
    made_with = {key: evolution[key] for key in ("cpu", "code_version", "versions")}
    return Pack(
        name,
        config,
        at,
        precision,
        summarise(packed[shown], config.seed),
        summarise(own[shown], config.seed),
        difference,
        info[WHOLE_RUN],
        made_with,
    )


def move_into_place(folder: Path, out: Path) -> int:
    """Check the size of a finished pack and give it its name; returns its size in bytes.

    Raises:
        StorageError: It is too large, or the place was taken in the meantime.
    """
    for path in sorted(folder.rglob("*"), reverse=True):  # folders left empty by temporary and removed files
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size_bytes > MAX_BYTES:
        raise StorageError(
            f"the pack has {size(size_bytes)}, and {size(MAX_BYTES)} are allowed: train with a smaller vae.z_size or "
            "mdnrnn.hidden_size to share it this way, or copy the run: world-models storage copy"
        )
    try:
        folder.rename(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be made: {error.strerror or error}. Choose another --out") from error
    return size_bytes


def new_folder(out: Path) -> Path:
    """Make an empty folder next to the place of a pack, on the same disk.

    Raises:
        StorageError: The place is taken, or the folder cannot be made.
    """
    if out.exists():
        raise StorageError(f"{out} exists: choose another --out, or remove it first")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = out.absolute().parent / f".{out.name}-{uuid4().hex[:12]}"
        folder.mkdir()  # with the permissions of any new folder, unlike folders of `tempfile`
    except OSError as error:
        raise StorageError(f"{out} cannot be made: {error.strerror or error}. Choose another --out") from error
    return folder


def as_shared(config: RunConfig, name: str) -> RunConfig:
    """Config with another name, and without the sections of the machine, which may name its servers."""
    own = {"name": name, "execution": {"exact": config.execution.exact}, "metrics": {}, "storage": {}}
    return RunConfig.model_validate({**config.model_dump(), **own})


def _write_agent(source: Store, target: LocalStore, config: RunConfig, at: Round, precision: str) -> None:
    """Write config, weights, controllers and history, each in the folder that it has in the run."""
    target.write(CONFIG, dump(config).encode())
    evolution = at.folder(EVOLUTION)
    for prefix, starts in (
        (vae_folder(config.rounds, at), (VAE_WEIGHTS,)),
        (at.folder(MDNRNN), (MDNRNN_WEIGHTS,)),
        (evolution, (CONTROLLERS, HISTORY)),
    ):
        for start in starts:
            record = newest_record(source, prefix, start)
            data = read_verified(source, record)
            if prefix != evolution and precision == "float16":
                data = to_half(data)
            commit_as(target, prefix, record, data)
        seal_stage(source, target, config, prefix, {"weights": precision} if prefix != evolution else {})


def _evaluate(source: Store, target: LocalStore, config: RunConfig, at: Round, executor: Executor) -> Mapping[str, Any]:
    """Play the test episodes with the packed weights and seal them; returns the facts of the stage."""
    prefix, began = at.folder(EVALUATION), time.monotonic()
    info = evaluate.run(config_in(config, at), target, executor, at)
    # The film as a GIF takes more than all weights, and checkpoints and curves serve only a run that is resumed.
    unused = [
        record
        for name, record in read_records(target, prefix).items()
        if name.startswith(DRIVE) and name.endswith(GIF_END)
    ]
    for record in unused:
        target.delete(record_key(prefix, record.name))
        target.delete(record.key)
    for start in (checkpoints_prefix(prefix), metrics_key(prefix), tensorboard_prefix(prefix)):
        for key in target.list(start):
            target.delete(key)
    facts = {**info, "seconds": time.monotonic() - began, WHOLE_RUN: cost_of_run(config, source), **this_machine()}
    seal_stage(source, target, config, prefix, facts)
    return facts


def commit_as(target: Store, prefix: str, record: Record, data: bytes) -> None:
    """Commit data under the name, in the folder and with the facts of a run's own record."""
    folder = object_folder(record.key)
    commit(target, prefix, record.name, data, rows=record.rows, folder=folder, **record.info)


def seal_stage(source: Store, target: Store, config: RunConfig, prefix: str, info: Mapping[str, Any]) -> None:
    """Seal a stage of a pack, made from the stages that the pack holds, with the facts of the run's own stage.

    Args:
        source: Store of the run.
        target: Store of the pack.
        config: Config of the pack.
        prefix: Prefix of the stage.
        info: Facts that replace or extend the ones of the run's stage.
    """
    stage = next(stage for stage in stages_of(config) if stage.prefix == prefix)
    upstream = {each: found.digest for each in stage.reads if (found := read_manifest(target, each)) is not None}
    theirs = require_manifest(source, prefix)
    manifest = replace(
        stage.manifest(config_in(config, stage.round), upstream),
        records=read_records(target, prefix),
        info={key: value for key, value in {**theirs.info, **info}.items() if key in (*_KEPT, *_PACK_FACTS)},
    )
    seal(target, prefix, manifest)


def _clear(target: LocalStore) -> None:
    for key in target.list():
        target.delete(key)
