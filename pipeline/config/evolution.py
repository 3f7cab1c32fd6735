"""Sections of the evolution, in the environment or in a dream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Section, growable, runtime

# Keys that only episodes in the environment follow, as they are in an evolution without such episodes.
ONLY_DREAMS: dict[str, Any] = {"replayed_tracks": 0, "episode_steps": None, "stall_steps": None}


class EpisodesFrom(Section):
    """Another number of episodes per candidate from a generation on."""

    generation: int = Field(ge=2)
    episodes: int = Field(ge=1)


class SigmaFrom(Section):
    """Another step size from a generation on; CMA-ES continues from it."""

    generation: int = Field(ge=2)
    sigma: float = Field(ge=1e-12, le=1e6)


class DreamConfig(Section):
    """Episodes in M's dream, for ``evolve.environment: dream``. Paper section 4 (TakeCover)."""

    temperature: float = Field(
        1.15, gt=0, le=10, description="uncertainty; 1 is M's own density, 1.15 the paper's best"
    )
    start: Literal["first", "anywhere"] = Field(
        "first", description="first: from the first frame of a collected episode (the paper); anywhere: from any frame"
    )
    reward: Literal["survival", "model"] = Field(
        "survival", description="survival: 1 for each action (the paper); model: the reward that M predicts"
    )
    end_probability: float = Field(
        0.5, gt=0, lt=1, description="probability of an end, as M predicts it, above which a dream ends (the paper)"
    )
    max_steps: int = Field(2100, ge=2, description="actions after which a dream is cut off")
    micro_batch: int = Field(
        128, ge=1, description="dreams in a forward pass on a CPU; an identity key: it changes bits"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one, which then dreams a whole generation in one task"
    )
    lanes: int = runtime(256, ge=1, description="dreams that one worker runs in lockstep on a CPU")


class EvolveConfig(Section):
    """Stage 5: CMA-ES over controllers."""

    environment: Literal["game", "dream"] = Field(
        "game", description="where candidates are scored: in the environment, or in M's dream (keys in dream)"
    )
    game_from: int | None = Field(
        None, ge=2, description="generation from which candidates are scored in the environment, after dreams before it"
    )
    select: Literal["game", "dream"] = Field(
        "game", description="how the best controller is chosen: by returns in validation episodes, or in dreams"
    )
    validation_dreams: int = Field(1024, ge=1, description="dreams of a validation, if candidates are scored in dreams")
    population_size: int = Field(64, ge=3, description="candidates in a generation; CMA-ES needs three")
    episodes: int = Field(16, ge=1, description="episodes per candidate; fitness is their mean return")
    episodes_from: list[EpisodesFrom] = Field(
        [], description="episodes per candidate from later generations on: {generation, episodes}"
    )
    sigma: float = Field(0.1, ge=1e-12, le=1e6, description="initial step size of CMA-ES")
    sigma_from: list[SigmaFrom] = Field(
        [],
        description="step size set before later generations: {generation, sigma}; CMA-ES adapts it slowly",
    )
    generations: int = growable(1800, ge=1, description="generations to evolve")
    target_return: float | None = growable(None, description="stop once a validation mean reaches it; null: never")
    episode_steps: int | None = Field(None, ge=2, description="maximum steps of a training episode; null: whole ones")
    stall_steps: int | None = Field(
        None, ge=1, description="steps without a positive reward that end a training episode"
    )
    common_tracks: bool = Field(True, description="whether all candidates of a generation get the same tracks")
    replayed_tracks: int = Field(
        0, ge=0, description="episodes of a candidate that are on earlier tracks, harder ones more often"
    )
    replay_window: int = Field(16, ge=1, description="generations whose tracks can be replayed")
    average_means: int = Field(
        1, ge=1, description="last CMA means whose average is validated: less noise than one mean"
    )
    validate_every: int = Field(25, ge=1, description="generations from one validation to the next")
    validation_episodes: int = Field(100, ge=1, description="episodes of a validation")
    max_seconds: float | None = runtime(
        None, gt=0, description="seconds after which the session ends (exit code 3); resume later"
    )
    keep_checkpoints: int = runtime(3, ge=2, description="checkpoints to keep")

    @field_validator("episodes_from", "sigma_from")
    @classmethod
    def _each_generation_once(cls, changes: list[Any]) -> list[Any]:
        generations = [change.generation for change in changes]
        if twice := sorted({each for each in generations if generations.count(each) > 1}):
            raise ValueError(f"generation {twice[0]} is given twice")
        return changes

    def dreams_at(self, generation: int) -> bool:
        """Whether a generation's candidates are scored in dreams, the first being 1."""
        return self.environment == "dream" and (self.game_from is None or generation < self.game_from)

    def episodes_at(self, generation: int) -> int:
        """Episodes per candidate in a generation, the first being 1."""
        begun = [change for change in self.episodes_from if change.generation <= generation]
        return max(begun, key=lambda change: change.generation).episodes if begun else self.episodes

    def sigma_at(self, generation: int) -> float | None:
        """Step size to set before a generation, the first being 1; None if CMA-ES keeps its own."""
        return next((change.sigma for change in self.sigma_from if change.generation == generation), None)

    def episodes_until(self, generation: int) -> int:
        """Episodes per candidate in all generations up to this one."""
        return sum(self.episodes_at(g) for g in range(1, generation + 1))
