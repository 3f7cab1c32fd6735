"""The runs of a study, and the stages that several of them share.

A study lies in one folder::

    STUDY_DIR/
      study.yaml                the study, with its base config in full
      arms/ARM/seed-1/          a run directory for each arm and seed
      shared/STAGE-HASH/        a run directory for each stage that several runs have in common
      comparison/               the page, JSON and CSV of `world-models compare`
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from pipeline.config.identity import flatten
from pipeline.config.schema import RunConfig
from pipeline.config.study import StudyConfig, config_of
from pipeline.data.artifacts import REPORT
from pipeline.data.rounds import config_in
from pipeline.stages.table import Stage, stages_of

STUDY = "study.yaml"
ARMS, SHARED, COMPARISON = "arms", "shared", "comparison"


@dataclass(frozen=True)
class SharedStage:
    """A stage that several runs of a study have in common. It is made once, in a run directory of its own.

    Attributes:
        folder: Folder of that run directory in the study.
        prefix: Prefix of the stage.
        command: Name of the stage on the command line.
        config: Config of that run: the one of the first run of the study that has the stage, without trackers.
        inputs: Folders of the shared stages that it builds on, in order.
        sharers: Folders of the runs that share it.
    """

    folder: str
    prefix: str
    command: str
    config: RunConfig
    inputs: tuple[str, ...]
    sharers: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the run.
        config: Config of the run.
        shared: Stages that it shares with other runs, in order.
    """

    arm: str
    seed: int
    config: RunConfig
    shared: tuple[SharedStage, ...]

    @property
    def name(self) -> str:
        """Name of the run, unique in the study."""
        return f"{self.arm}/seed-{self.seed}"

    @property
    def folder(self) -> str:
        """Folder of the run directory in the study."""
        return _folder(self.arm, self.seed)


def _folder(arm: str, seed: int) -> str:
    return f"{ARMS}/{arm}/seed-{seed}"


def trials_of(study: StudyConfig) -> list[Trial]:
    """The runs of a study, seed by seed, so that an early look shows every arm."""
    configs = {(arm, seed): config_of(study, arm, seed) for seed in study.seeds for arm in study.arms}
    hashes = {which: _hashes(config) for which, config in configs.items()}
    sharers: dict[str, list[tuple[str, int]]] = {}
    for which, of_run in hashes.items():
        for each in of_run.values():
            sharers.setdefault(each, []).append(which)
    made_by: dict[str, RunConfig] = {}
    trials = []
    for (arm, seed), config in configs.items():
        shared: list[SharedStage] = []
        for stage in stages_of(config):
            hash_ = hashes[arm, seed].get(stage.prefix)
            if hash_ is None or len(sharers[hash_]) == 1:
                continue
            if hash_ not in made_by:
                made_by[hash_] = config_of(study, *sharers[hash_][0], {"metrics.trackers": []})
            folder = f"{SHARED}/{stage.label}-{hash_[:12]}"
            inputs = tuple(each.folder for each in shared)
            runs = tuple(_folder(*which) for which in sharers[hash_])
            shared.append(SharedStage(folder, stage.prefix, stage.name, made_by[hash_], inputs, runs))
        trials.append(Trial(arm, seed, config, tuple(shared)))
    return trials


def _hashes(config: RunConfig) -> dict[str, str]:
    """Hash of everything that a stage's output depends on, by the stage's prefix."""
    hashes: dict[str, str] = {}
    for stage in stages_of(config):
        if stage.prefix != REPORT:
            content = [stage.name, stage.prefix, _keys(config, stage), [hashes[prefix] for prefix in stage.reads]]
            hashes[stage.prefix] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return hashes


def _keys(config: RunConfig, stage: Stage) -> list[dict[str, object]]:
    of_round = config_in(config, stage.round)
    return [flatten(of_round, kind, stage.keys) for kind in ("identity", "growable")]
