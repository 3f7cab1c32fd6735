"""Jobs of rollout workers, in the environment and in dreams, and their results."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.base.arrays import Array
from pipeline.base.progress import Metrics

JobId = tuple[str, int, int, int]


@dataclass(frozen=True)
class RolloutJob:
    """One episode to run.

    Attributes:
        purpose: Purpose of the episode: ``"train"``, ``"validate"`` or ``"test"``.
        generation, candidate, episode: Numbers that identify the episode.
        track: Track seed.
        noise_seed: Seed of the random stream that z is sampled with.
        parameters: Controller parameters, (n,) float32.
        max_steps: Environment steps after which the episode is cut.
        stall_steps: Environment steps without a positive reward after which the episode is cut; None for no limit.
    """

    purpose: str
    generation: int
    candidate: int
    episode: int
    track: int
    noise_seed: int
    parameters: Array = field(repr=False)
    max_steps: int
    stall_steps: int | None = None

    @property
    def id(self) -> JobId:
        """Job id: (purpose, generation, candidate, episode)."""
        return self.purpose, self.generation, self.candidate, self.episode

    @property
    def name(self) -> str:
        """Description for messages."""
        return (
            f"episode {self.episode} of candidate {self.candidate} in generation {self.generation} ({self.purpose}), "
            f"on track seed {self.track}"
        )


@dataclass(frozen=True)
class RolloutResult:
    """Outcome of an episode.

    Attributes:
        episode_return: Sum of rewards, float64.
        steps: Environment steps; if actions are repeated, the last action counts with all its steps.
        terminated, truncated: Whether the environment or its step limit ended the episode; both False if the pipeline
            cut it.
    """

    episode_return: float
    steps: int
    terminated: bool
    truncated: bool

    @property
    def metrics(self) -> Metrics:
        """See ``pipeline.base.progress``."""
        return {"episodes": 1, "env_steps": self.steps}
