"""The stages in order, as data: name, inputs, output, and the config keys that the output depends on.

Importing this table imports no stage, and so neither torch nor an environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.identity import flatten
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION, LATENTS, MDNRNN, REPORT, ROLLOUTS, VAE
from pipeline.data.rounds import FIRST, Round, encoded_rounds, latents_rounds, rounds_of, vae_folder
from pipeline.storage.layout import place_and_stage
from pipeline.storage.manifest import Manifest, read_manifest
from pipeline.storage.store import Store

# Names of the stages.
COLLECT, TRAIN_VAE, ENCODE, TRAIN_MDNRNN = "collect", "train-vae", "encode", "train-mdnrnn"
EVOLVE, EVALUATE, MAKE_REPORT = "evolve", "evaluate", "report"

WHOLE_RUN = "whole_run"  # in the facts of a pack's evaluation: the cost of the run that it was made from


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: Name on the command line.
        prefix: Folder of the run directory for its output.
        reads: Prefixes of the stages whose output it reads.
        keys: Config sections or keys that its output depends on.
        help: One-line description for ``--help``.
        may_grow: Prefixes of ``reads`` that may grow after the completion of this stage, which is then resumed.
        round: Round that it belongs to.
        external_inputs: Further inputs of its output, beyond the config and the run, by a name for messages.
    """

    name: str
    prefix: str
    reads: tuple[str, ...]
    keys: tuple[str, ...]
    help: str
    may_grow: tuple[str, ...] = ()
    round: Round = FIRST
    external_inputs: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """Name in keys of the store, unique within a run."""
        place, _ = place_and_stage(self.prefix)
        return "-".join([*place.split("/"), self.name]) if place else self.name

    @property
    def title(self) -> str:
        """Name for messages, with its round and branch if they are not the first ones."""
        at = self.round
        of_round = [f"round {at.number}"] if at.number > 1 else []
        return ", ".join([*of_round, *([at.branch] if at.branch else []), self.name])

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """Identity of its output, by dotted key: identity keys of the config of its round, and ``external_inputs``."""
        return {**flatten(config, "identity", self.keys), **self.external_inputs}

    def limits(self, config: RunConfig) -> dict[str, Any]:
        """Limits of its output that may grow, by dotted key of the config of its round."""
        return flatten(config, "growable", self.keys)

    def manifest(self, config: RunConfig, upstream: Mapping[str, str]) -> Manifest:
        """Manifest of this stage without its records and its facts.

        Args:
            config: Config of the stage's round.
            upstream: Manifest digest of each stage that it reads, by prefix.
        """
        return Manifest(self.name, self.identity(config), self.limits(config), upstream, records={}, info={})


def cost_of_run(config: RunConfig, store: Store) -> dict[str, float]:
    """Environment steps and seconds of all complete stages of a run; of a pack, which lacks stages, those of its run.

    Returns:
        Dictionary with the keys ``env_steps`` and ``seconds``.
    """
    infos = [found.info for stage in stages_of(config) if (found := read_manifest(store, stage.prefix)) is not None]
    for info in infos:
        if WHOLE_RUN in info:
            whole: dict[str, float] = info[WHOLE_RUN]
            return whole
    return {
        "env_steps": sum(info.get("env_steps") or 0 for info in infos),
        "seconds": sum(float(info["seconds"]) for info in infos),
    }


def stages_of(config: RunConfig) -> list[Stage]:
    """All stages of a run, in order: those of each round, then the report; or the evaluation of an external agent."""
    if config.evaluate.agent is not None:
        keys = ("seed", "env", "tracks.test", "rollouts", "evaluate")
        return [Stage(EVALUATE, EVALUATION, (), keys, "evaluate an external agent on the test tracks")]
    of_rounds = [stage for at in rounds_of(config.rounds) for stage in _round(config, at)]
    reads = tuple(stage.prefix for stage in of_rounds)
    return [*of_rounds, Stage(MAKE_REPORT, REPORT, reads, (), "7: make a page with the results", may_grow=reads)]


# A round's own limits are those of its stages: the number of rounds concerns none of them.
_ROUND_KEYS = tuple(flatten(RunConfig(), "identity", ("rounds",)))


def _round(config: RunConfig, at: Round) -> list[Stage]:
    """The stages of a round."""
    before, v = at.previous, vae_folder(config.rounds, at)
    rollouts = tuple(each.folder(ROLLOUTS) for each in at.so_far)
    latents = tuple(each.folder(LATENTS) for each in latents_rounds(config.rounds, at))
    agent_before: tuple[str, ...] = ()
    if before is not None:
        agent_before = (vae_folder(config.rounds, before), before.folder(MDNRNN), before.folder(EVOLUTION))
    agent_sizes = ("vae.z_size", "mdnrnn.hidden_size", "controller")
    encoded = tuple(each.folder(ROLLOUTS) for each in encoded_rounds(config.rounds, at))

    def stage(name: str, folder: str, reads: tuple[str, ...], keys: tuple[str, ...], text: str) -> Stage:
        grows = (at.folder(EVOLUTION),) if name == EVALUATE else ()
        return Stage(name, at.folder(folder), reads, keys if at.number == 1 else (*keys, *_ROUND_KEYS), text, grows, at)

    stages = [
        stage(
            COLLECT, ROLLOUTS, agent_before,
            ("seed", "env", "tracks.training", "collect")
            + (agent_sizes if config.collect.policy == "random-controller" or before is not None else ())
            + (("rollouts.engine", "rollouts.precision") if before is not None else ()),
            "1: run episodes with a random policy and write them to shards",
        ),
        stage(TRAIN_VAE, VAE, (*rollouts, *agent_before[:1]), ("seed", "vae"), "2: train the VAE (V) on the frames"),
        stage(
            ENCODE, LATENTS, (*encoded, v), ("encode", "rollouts.engine", "rollouts.precision"),
            "3: encode the frames to latents",
        ),
        stage(
            TRAIN_MDNRNN, MDNRNN, (*latents, *agent_before[1:2]), ("seed", "mdnrnn"),
            "4: train the MDN-RNN (M) on latents and actions",
        ),
        stage(
            EVOLVE, EVOLUTION, (v, *latents, at.folder(MDNRNN), *agent_before[2:]),
            ("seed", "env", "tracks.training", "tracks.validation", "controller", "rollouts", "evolve", "dream"),
            "5: evolve the controller (C) by CMA-ES",
        ),
        stage(
            EVALUATE, EVALUATION, (v, at.folder(MDNRNN), at.folder(EVOLUTION)),
            ("seed", "env", "tracks.test", "rollouts", "evaluate"),
            "6: evaluate the controllers on the test tracks",
        ),
    ]  # fmt: skip
    return [each for each in stages if each.name != TRAIN_VAE or v == at.folder(VAE)]


def branch_stages(config: RunConfig, at: Round) -> list[Stage]:
    """Evolution and evaluation of a branch, with V and M of its round."""
    return [stage for stage in _round(config, at) if stage.name in (EVOLVE, EVALUATE)]


# The stages of a run with one round.
STAGES = tuple(stages_of(RunConfig()))


def stage_filling(prefix: str) -> Stage:
    """Look up the stage that writes a prefix, without its round."""
    return next(stage for stage in STAGES if stage.prefix == place_and_stage(prefix)[1])
