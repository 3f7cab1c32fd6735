"""Section of the rounds."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section, growable


class RoundsConfig(Section):
    """Rounds after the first: the agent collects, M and C continue training. Paper section 5."""

    count: int = growable(1, ge=1, le=999, description="rounds in total; keys below apply from the second on")
    episodes: int = Field(500, ge=2, description="episodes that a round collects with the controllers of the last one")
    bursts: float = Field(
        0.02,
        ge=0,
        le=1,
        description="probability that an action of these episodes begins a burst, which holds one random action",
    )
    burst_actions: int = Field(10, ge=1, description="largest number of actions of a burst")
    vae_epochs: int = Field(0, ge=0, description="passes of V over the frames of all rounds; 0: V stays as it is")
    vae_learning_rate: float = Field(1e-4, gt=0, description="step size of Adam when V continues")
    mdnrnn_epochs: int = Field(10, ge=1, description="passes of M over the latents of all rounds, at most")
    mdnrnn_learning_rate: float = Field(3e-4, gt=0, description="step size of Adam when M continues")
    generations: int = growable(75, ge=1, description="generations of a round, which begin at the last CMA mean")
    sigma: float = Field(0.05, ge=1e-12, le=1e6, description="initial step size of CMA-ES in a round")
