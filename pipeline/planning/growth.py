"""Check before a run that its limits can still grow."""

from __future__ import annotations

from pipeline.base.errors import ConfigError
from pipeline.config.identity import diff
from pipeline.config.schema import RunConfig
from pipeline.data.rounds import config_in
from pipeline.stages.table import stages_of
from pipeline.storage.layout import begun_key
from pipeline.storage.manifest import read_manifest
from pipeline.storage.store import Store


def check_growth(config: RunConfig, store: Store) -> None:
    """Refuse a grown limit of a stage from which a later round was made.

    Raises:
        ConfigError: A limit has grown too late; names the key, its values, and the folder that was made from it.
    """
    if config.rounds.count == 1:
        return
    stages = stages_of(config)
    for stage in stages:
        manifest = read_manifest(store, stage.prefix)
        growable = stage.limits(config_in(config, stage.round))
        if manifest is None or manifest.grown == growable:
            continue
        for other in stages:
            fixed = stage.prefix in other.reads and stage.prefix not in other.may_grow
            if fixed and store.exists(begun_key(other.prefix)):
                raise ConfigError(
                    f"{store.locate(stage.prefix)} cannot grow any more, because {store.locate(other.prefix)} was made "
                    "from it:\n" + "\n".join(diff(manifest.grown, growable)) + "\nUse the old limits. More rounds "
                    "(rounds.count), more test episodes and the limits of the last round may still grow."
                )
