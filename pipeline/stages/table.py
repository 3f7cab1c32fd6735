"""The stages in order, as data: name, inputs, output, and the config keys that the output depends on.

Importing this table imports no stage, and so neither torch nor an environment.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.artifacts import EVALUATION, EVOLUTION, LATENTS, MDNRNN, REPORT, ROLLOUTS, VAE


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: Name on the command line.
        prefix: Folder of the run directory for its output.
        reads: Prefixes of the stages whose output it reads.
        keys: Config sections or keys that its output depends on.
        help: One-line description for ``--help``.
    """

    name: str
    prefix: str
    reads: tuple[str, ...]
    keys: tuple[str, ...]
    help: str


STAGES = (
    Stage(
        "collect",
        ROLLOUTS,
        (),
        # The sizes of V, M and C: random controllers use them.
        ("seed", "env", "tracks.training", "collect", "vae.z_size", "mdnrnn.hidden_size", "controller"),
        "1: run episodes with a random policy and write them to shards",
    ),
    Stage("train-vae", VAE, (ROLLOUTS,), ("seed", "vae"), "2: train the VAE (V) on the frames"),
    Stage(
        "encode",
        LATENTS,
        (ROLLOUTS, VAE),
        ("encode", "rollouts.engine", "rollouts.precision"),
        "3: encode the frames to latents",
    ),
    Stage("train-mdnrnn", MDNRNN, (LATENTS,), ("seed", "mdnrnn"), "4: train the MDN-RNN (M) on latents and actions"),
    Stage(
        "evolve",
        EVOLUTION,
        (VAE, LATENTS, MDNRNN),
        ("seed", "env", "tracks.training", "tracks.validation", "controller", "rollouts", "evolve", "dream"),
        "5: evolve the controller (C) by CMA-ES",
    ),
    Stage(
        "evaluate",
        EVALUATION,
        (VAE, MDNRNN, EVOLUTION),
        ("seed", "env", "tracks.test", "rollouts", "evaluate"),
        "6: evaluate the controllers on the test tracks",
    ),
    Stage(
        "report",
        REPORT,
        (ROLLOUTS, VAE, LATENTS, MDNRNN, EVOLUTION, EVALUATION),
        (),
        "7: make a page with the results",
    ),
)

# Stages that may grow after they were complete: more generations, more test episodes.
GROWING = (EVOLUTION, EVALUATION)


def stage_named(name: str) -> Stage:
    """Look up a stage by its command-line name."""
    return next(stage for stage in STAGES if stage.name == name)


def stage_filling(prefix: str) -> Stage:
    """Look up the stage that writes a prefix."""
    return next(stage for stage in STAGES if stage.prefix == prefix)
