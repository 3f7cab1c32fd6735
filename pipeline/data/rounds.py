"""Rounds of a run: the folders and the episodes of each, and the earlier output that it builds on.

The first round collects with a random policy and trains V, M and C from scratch. A later one collects with the
controllers of the round before it and continues the trainings (World Models, section 5: the iterative training
procedure).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.rounds import RoundsConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION, VAE
from pipeline.storage.layout import round_folder
from pipeline.storage.manifest import read_manifest
from pipeline.storage.store import Store


@dataclass(frozen=True, order=True)
class Round:
    """One round.

    Attributes:
        number: Number of the round; the first is 1.
        branch: Folder of another evolution with V and M of this round, and of its evaluation; "" for the round's own.
    """

    number: int = 1
    branch: str = ""

    def folder(self, name: str) -> str:
        """Folder of a stage's output in this round, relative to the run directory."""
        of_branch = self.branch and name in (EVOLUTION, EVALUATION)
        path = f"{self.branch}/{name}" if of_branch else name
        return path if self.number == 1 else f"{round_folder(self.number)}/{path}"

    @property
    def previous(self) -> Round | None:
        """The round before; None for the first, and for a branch, which begins from scratch."""
        return Round(self.number - 1) if self.number > 1 and not self.branch else None

    @property
    def so_far(self) -> list[Round]:
        """All rounds up to this one, from the first on."""
        return [Round(number) for number in range(1, self.number + 1)]

    def seed_indices(self) -> tuple[int, ...]:
        """Indices that keep the episodes of this round's evolution, and its held-out episodes, apart from others."""
        return () if self.number == 1 else (self.number,)


FIRST = Round()


def config_in(config: RunConfig, at: Round) -> RunConfig:
    """Config of the stages of a round; a branch has its own."""
    return config if at.branch else config.in_round(at.number)


def rounds_of(rounds: RoundsConfig) -> list[Round]:
    """All rounds of a run."""
    return Round(rounds.count).so_far


def latest_round(rounds: RoundsConfig, store: Store, name: str) -> Round:
    """Latest round in which the stage of a folder is complete; the first if there is none."""
    complete = [at for at in rounds_of(rounds) if read_manifest(store, at.folder(name)) is not None]
    return complete[-1] if complete else FIRST


def episodes_of(config: RunConfig, at: Round) -> range:
    """IDs of the episodes that a round collects."""
    if at == FIRST:
        return range(config.collect.episodes)
    first = config.collect.episodes + (at.number - 2) * config.rounds.episodes
    return range(first, first + config.rounds.episodes)


def shards_of(config: RunConfig, at: Round) -> range:
    """Numbers of the shards that a round collects."""

    def count(each: Round) -> int:
        return -(-len(episodes_of(config, each)) // config.collect.episodes_per_shard)

    first = sum(count(each) for each in at.so_far[:-1])
    return range(first, first + count(at))


def shard_episodes(config: RunConfig, at: Round, shard: int) -> range:
    """Episode IDs of a shard; they do not depend on the worker that records it."""
    size, episodes = config.collect.episodes_per_shard, episodes_of(config, at)
    first = (shard - shards_of(config, at).start) * size
    return episodes[first : first + size]


def vae_round(rounds: RoundsConfig, at: Round) -> Round:
    """The round whose V a round uses."""
    return at if rounds.vae_epochs else FIRST


def vae_folder(rounds: RoundsConfig, at: Round) -> str:
    """Folder of the V that a round uses."""
    return vae_round(rounds, at).folder(VAE)


def encoded_rounds(rounds: RoundsConfig, at: Round) -> list[Round]:
    """Rounds whose frames a round encodes: with a new V all so far, else its own alone."""
    return at.so_far if vae_round(rounds, at) == at else [at]


def latents_rounds(rounds: RoundsConfig, at: Round) -> list[Round]:
    """Rounds whose folders hold the latents of all episodes so far: a V with further training encodes all again."""
    return [at] if rounds.vae_epochs else at.so_far
