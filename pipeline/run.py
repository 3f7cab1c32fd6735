"""The whole flow, on one page: the stages in order, what each reads, and what makes it complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.base.errors import ConfigError, DamagedDataError, StorageError
from pipeline.base.failpoints import failpoint
from pipeline.config.identity import code_version, cpu_kind, diff, flatten, library_versions, shrunk
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor
from pipeline.stages import collect, encode, evaluate, evolve, report, train_mdnrnn, train_vae
from pipeline.stages.table import GROWING, STAGES, Stage, stage_filling
from pipeline.storage import sealed
from pipeline.storage.layout import begun_key, manifest_key
from pipeline.storage.manifest import Manifest, outgrown, read_manifest, read_records, seal, supersede
from pipeline.storage.session_notes import stage_seconds, timed
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


RUN: Mapping[str, Callable[[RunConfig, Store, Executor], Mapping[str, Any]]] = {
    "collect": collect.run,
    "train-vae": train_vae.run,
    "encode": encode.run,
    "train-mdnrnn": train_mdnrnn.run,
    "evolve": evolve.run,
    "evaluate": evaluate.run,
    "report": report.run,
}


def run_stages(config: RunConfig, store: Store, executor: Executor, stages: Sequence[Stage] = STAGES) -> None:
    """Run the stages in order; what is complete is skipped, what is not goes on from what it has."""
    for stage in stages:
        upstream = _upstream(store, stage)
        if is_complete(config, store, stage, upstream):
            logger.info("%s: complete, skipped", stage.name)
            continue
        _begin(config, store, stage, upstream)
        failpoint("stage-begun")
        logger.info("%s: begins", stage.name)
        with timed(store, stage.name):
            info = RUN[stage.name](config, store, executor)
        seconds = stage_seconds(store, stage.name)
        failpoint("stage-done")
        _seal(config, store, stage, upstream, {**info, "seconds": seconds})
        failpoint("stage-sealed")
        logger.info("%s: complete in %.1f s", stage.name, seconds)


def is_complete(config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str]) -> bool:
    """Whether a stage's manifest matches.

    A stage whose own limit grew, or whose upstream did, has its seal taken off and is not complete.

    Raises:
        ConfigError: the manifest is of another config; names the keys.
    """
    manifest = read_manifest(store, stage.prefix)
    if manifest is None:
        return False
    identity, growable = flatten(config, "identity", stage.keys), flatten(config, "growable", stage.keys)
    where = store.locate(manifest_key(stage.prefix))
    if lines := diff(manifest.config, identity):
        raise ConfigError(
            f"{where} seals a stage of another config:\n" + "\n".join(lines) + "\nChoose another --run-dir."
        )
    if lines := shrunk(manifest.grown, growable):
        raise ConfigError(
            f"{where} seals more than is asked for now:\n" + "\n".join(lines) + "\nThese keys may only grow."
        )
    _check_upstream(store, stage, manifest.upstream, upstream)
    if manifest.grown == growable and manifest.upstream == upstream:
        return True
    supersede(store, stage.prefix, manifest)
    logger.info("%s: what it was made from has grown, goes on", stage.name)
    return False


def _fixed(upstream: Mapping[str, str]) -> dict[str, str]:
    """Of some digests, those that nothing may change: of stages that cannot grow."""
    return {prefix: digest for prefix, digest in upstream.items() if prefix not in GROWING}


def _check_upstream(store: Store, stage: Stage, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Refuse to mix what a stage made from other inputs with what it would make from these."""
    changed = [prefix for prefix in _fixed(new) if old.get(prefix) != new[prefix]]
    if changed:
        raise StorageError(
            f"what {stage.name} has in {store.locate(stage.prefix)} was made from other "
            f"{' and '.join(f'{prefix}/' for prefix in changed)} than are there now. Restore those from a copy; or "
            f"have it made anew: remove {store.locate(stage.prefix)} and run the same command again."
        )


def _begin(config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str]) -> None:
    """Write down what a stage is made from, before it makes anything: a later session must find the same."""
    key = begun_key(stage.prefix)
    begun = {"config": flatten(config, "identity", stage.keys), "upstream": _fixed(upstream)}
    if not store.exists(key):
        store.create(key, sealed.to_bytes(begun))
        return
    try:
        before = sealed.read(store, key, "what a stage was begun from")
        config_before, upstream_before = before["config"], before["upstream"]
    except (DamagedDataError, KeyError) as error:
        raise DamagedDataError(
            f"{store.locate(key)} is damaged ({error}): restore it from a copy; or remove "
            f"{store.locate(stage.prefix)} to have the stage made anew"
        ) from error
    if lines := diff(config_before, begun["config"]):
        raise ConfigError(
            f"{store.locate(key)} began a stage of another config:\n" + "\n".join(lines) + "\nChoose another --run-dir."
        )
    _check_upstream(store, stage, upstream_before, upstream)


def _upstream(store: Store, stage: Stage) -> dict[str, str]:
    """Digests of the manifests that a stage reads, each of them up to date with what it was made from itself."""
    digests = {}
    for prefix in stage.reads:
        manifest = read_manifest(store, prefix)
        if manifest is None:
            first = next(other.name for other in STAGES if read_manifest(store, other.prefix) is None)
            raise StorageError(
                f"{stage.name} reads what {stage_filling(prefix).name} leaves under {store.locate(prefix)}, and "
                f"that is not complete. Run `world-models {first}` first with the same arguments, or "
                "`world-models run` for all stages."
            )
        if earlier := outgrown(store, manifest):
            raise StorageError(
                f"{store.locate(prefix)} was made from an earlier {earlier[0]}/ than is there now: run "
                f"`world-models {stage_filling(prefix).name}` first, or `world-models run` for all stages."
            )
        digests[prefix] = manifest.digest
    return digests


def _seal(config: RunConfig, store: Store, stage: Stage, upstream: Mapping[str, str], info: Mapping[str, Any]) -> None:
    manifest = Manifest(
        stage=stage.name,
        config=flatten(config, "identity", stage.keys),
        grown=flatten(config, "growable", stage.keys),
        upstream=upstream,
        records=read_records(store, stage.prefix),
        info={
            **info,
            "session": store.session,
            "code_version": code_version(),
            "cpu": cpu_kind(),
            "versions": library_versions(),
        },
    )
    seal(store, stage.prefix, manifest)
