"""The pipeline's control flow: run the stages in order, check their inputs, and seal the complete ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.base.errors import ConfigError, DamagedDataError, StorageError
from pipeline.base.failpoints import failpoint
from pipeline.base.formatting import duration
from pipeline.config.identity import code_version, cpu_kind, diff, shrunk, this_machine
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import REPORT
from pipeline.data.rounds import Round, config_in
from pipeline.execution.protocol import Executor
from pipeline.stages import collect, encode, evaluate, evolve, report, train_mdnrnn, train_vae
from pipeline.stages.table import (
    COLLECT,
    ENCODE,
    EVALUATE,
    EVOLVE,
    MAKE_REPORT,
    TRAIN_MDNRNN,
    TRAIN_VAE,
    Stage,
    stage_filling,
    stages_of,
)
from pipeline.storage import sealed_json
from pipeline.storage.layout import begun_key, manifest_key, place_and_stage
from pipeline.storage.manifest import read_manifest, read_records, seal, stale_inputs, supersede
from pipeline.storage.references import find_equal, refer
from pipeline.storage.session_notes import stage_seconds, timed
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


RUN: Mapping[str, Callable[[RunConfig, Store, Executor, Round], Mapping[str, Any]]] = {
    COLLECT: collect.run,
    TRAIN_VAE: train_vae.run,
    ENCODE: encode.run,
    TRAIN_MDNRNN: train_mdnrnn.run,
    EVOLVE: evolve.run,
    EVALUATE: evaluate.run,
    MAKE_REPORT: report.run,
}


def run_stages(
    config: RunConfig,
    store: Store,
    executor: Executor,
    stages: Sequence[Stage] | None = None,
    reuse: Sequence[Store] = (),
) -> None:
    """Run stages in order; skip complete stages and resume incomplete ones.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stages.
        stages: Stages to run; None for all of the run.
        reuse: Other runs, to whose equal stages the run refers instead of making them again.
    """
    for stage in stages_of(config) if stages is None else stages:
        if stage.name == EVALUATE:
            stage = replace(stage, external_inputs=evaluate.agent_identity(config.evaluate))
        _refer_to_inputs(config, store, stage, reuse)
        of_round = config_in(config, stage.round)
        upstream = _upstream_digests(config, store, stage)
        if is_complete(of_round, store, stage, upstream):
            logger.info("%s: complete, skipped", stage.title)
            continue
        if _refer_to_equal(of_round, store, stage, upstream, reuse):
            continue
        _record_inputs(of_round, store, stage, upstream)
        failpoint("stage-begun")
        logger.info("%s: begins", stage.title)
        with timed(store, stage.label):
            info = RUN[stage.name](of_round, store, executor, stage.round)
        seconds = stage_seconds(store, stage.label)
        failpoint("stage-done")
        _seal(of_round, store, stage, upstream, {**info, "seconds": seconds})
        failpoint("stage-sealed")
        logger.info("%s: complete in %s", stage.title, duration(seconds))


def stages_for(config: RunConfig, store: Store, command: str) -> list[Stage]:
    """Stages to run for a command: all for ``run``, or one stage's, up to the first round in which it is incomplete."""
    wanted: list[Stage] = []
    for stage in stages_of(config):
        if command in ("run", stage.name):
            wanted.append(stage)
            if command != "run" and read_manifest(store, stage.prefix) is None:
                break
    return wanted


def is_complete(config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str]) -> bool:
    """Return whether a stage's manifest matches the config and the stage's inputs.

    If a limit of the stage or one of its inputs has grown, the seal is removed and the stage is not complete.

    Args:
        config: Config of the stage's round.
        store: Store of the run.
        stage: Stage to check.
        upstream: Manifest digest of each stage that it reads, by prefix.

    Raises:
        ConfigError: The manifest belongs to a different config; names the keys.
    """
    manifest = read_manifest(store, stage.prefix)
    if manifest is None:
        return False
    growable = stage.limits(config)
    where = store.locate(manifest_key(stage.prefix))
    if lines := diff(manifest.config, stage.identity(config)):
        raise ConfigError(f"{where} was made with a different config:\n" + "\n".join(lines) + _elsewhere(store, stage))
    if lines := shrunk(manifest.grown, growable):
        raise ConfigError(
            f"{where} already has more than this config asks for:\n" + "\n".join(lines) + "\nThese keys may only grow."
        )
    _check_upstream(store, stage, manifest.upstream, upstream)
    if manifest.grown == growable and manifest.upstream == upstream:
        return True
    supersede(store, stage.prefix, manifest)
    logger.info("%s: its limits or inputs have grown; resuming", stage.name)
    return False


def _refer_to_equal(
    config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str], reuse: Sequence[Store]
) -> bool:
    """Refer to the first equal stage of other runs; returns whether there is one. The report is always made."""
    if stage.prefix == REPORT or not reuse:
        return False
    cpu = cpu_kind() if config.execution.exact else None
    found = find_equal(stage.manifest(config, upstream), stage.prefix, reuse, cpu)
    if found is None:
        return False
    source, manifest = found
    if manifest.info["code_version"] != code_version():
        logger.warning(
            "%s: made by code version %s, this is %s", stage.title, manifest.info["code_version"], code_version()
        )
    _record_inputs(config, store, stage, upstream)
    refer(store, source, stage.prefix, manifest)
    failpoint("stage-sealed")
    logger.info("%s: refers to the equal stage of %s", stage.title, source.locate())
    return True


def _refer_to_inputs(config: RunConfig, store: Store, stage: Stage, reuse: Sequence[Store]) -> None:
    """Refer to a stage's missing inputs, and recursively to their inputs, where other runs have them."""
    earlier = {other.prefix: other for other in stages_of(config)}
    for prefix in stage.reads if reuse else ():
        if prefix in earlier and read_manifest(store, prefix) is None:
            _refer_to_inputs(config, store, earlier[prefix], reuse)
            if all(read_manifest(store, each) is not None for each in earlier[prefix].reads):
                at = config_in(config, earlier[prefix].round)
                _refer_to_equal(at, store, earlier[prefix], _upstream_digests(config, store, earlier[prefix]), reuse)


def _elsewhere(store: Store, stage: Stage) -> str:
    """Next step after a refusal of a stage that was made with another config."""
    if not stage.round.branch:
        return "\nChoose another --run-dir."
    folder = store.locate(place_and_stage(stage.prefix)[0])
    return f"\nUse these values again; or remove {folder} to run this evolution from scratch."


def _immutable_digests(stage: Stage, upstream: Mapping[str, str]) -> dict[str, str]:
    """Digests of the upstream stages that must never change."""
    return {prefix: digest for prefix, digest in upstream.items() if prefix not in stage.may_grow}


def _check_upstream(store: Store, stage: Stage, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raise ``StorageError`` if the stage's existing output was made from different inputs."""
    changed = [prefix for prefix in _immutable_digests(stage, new) if old.get(prefix) != new[prefix]]
    if changed:
        raise StorageError(
            f"{stage.name}: the output in {store.locate(stage.prefix)} was made from a different "
            f"{' and '.join(f'{prefix}/' for prefix in changed)} than the current one",
            resume_after="restore the original inputs from a copy, or remove "
            f"{store.locate(stage.prefix)} to make the output again",
        )


def _record_inputs(config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str]) -> None:
    """Record a stage's inputs before it writes any output; in later sessions, check that they are the same."""
    key = begun_key(stage.prefix)
    begun = {"config": stage.identity(config), "upstream": _immutable_digests(stage, upstream)}
    if not store.exists(key):
        store.create(key, sealed_json.to_bytes(begun))
        return
    try:
        before = sealed_json.read(store, key, "the record of a stage's inputs")
        config_before, upstream_before = before["config"], before["upstream"]
    except (DamagedDataError, KeyError) as error:
        raise DamagedDataError(
            f"{store.locate(key)}, the record of a stage's inputs, is damaged",
            resume_after="restore it from a copy, or remove "
            f"{store.locate(stage.prefix)} to run the stage from scratch",
        ) from error
    if lines := diff(config_before, begun["config"]):
        raise ConfigError(
            f"{store.locate(key)}: the stage was started with a different config:\n"
            + "\n".join(lines)
            + _elsewhere(store, stage)
        )
    _check_upstream(store, stage, upstream_before, upstream)


def _upstream_digests(config: RunConfig, store: Store, stage: Stage) -> dict[str, str]:
    """Digests of the manifests that a stage reads, by prefix.

    Raises:
        StorageError: An input is not complete, or is out of date with its own inputs.
    """
    digests = {}
    for prefix in stage.reads:
        manifest = read_manifest(store, prefix)
        if manifest is None:
            first = next(other.name for other in stages_of(config) if read_manifest(store, other.prefix) is None)
            raise StorageError(
                f"{stage.title} reads the output of {stage_filling(prefix).name} in {store.locate(prefix)}, which is "
                f"not complete. Run `world-models {first}` first with the same arguments, or `world-models run` for "
                "all stages."
            )
        if earlier := stale_inputs(store, manifest):
            raise StorageError(
                f"{store.locate(prefix)} was made from an earlier {earlier[0]}/ than the current one: run "
                f"`world-models {stage_filling(prefix).name}` first, or `world-models run` for all stages."
            )
        digests[prefix] = manifest.digest
    return digests


def _seal(config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str], info: Mapping[str, Any]) -> None:
    manifest = replace(
        stage.manifest(config, upstream),
        records=read_records(store, stage.prefix),
        info={**info, "session": store.session, **this_machine()},
    )
    seal(store, stage.prefix, manifest)
