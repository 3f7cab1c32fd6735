"""The state of an evolution: what a checkpoint carries."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evolution.replay import DrivenTrack
from pipeline.evolution.search import Search


@dataclass(frozen=True)
class Generation:
    """One row of the history.

    Attributes:
        generation: number, from 1.
        env_steps: environment steps driven so far, validation included.
        seconds: spent so far, over all sessions. The one figure that is no part of the determinism promise.
        fitness_min, fitness_mean, fitness_max, fitness_sd: over the candidates; each fitness is a mean return.
        sigma: CMA-ES step size after this generation.
        validation_mean, validation_sd: returns on the validation tracks, of the CMA mean or of the average of the last
            ones; None where not driven.
        time: when it ended, seconds since the epoch; no part of the promise either.
        non_finite: episodes, of the validation too, whose return was not finite, twice.
    """

    generation: int
    env_steps: int
    seconds: float
    fitness_min: float
    fitness_mean: float
    fitness_max: float
    fitness_sd: float
    sigma: float
    validation_mean: float | None
    validation_sd: float | None
    time: float
    non_finite: int = 0


@dataclass
class EvolutionState:
    """Where an evolution is.

    Attributes:
        search: CMA-ES.
        history: one row a generation.
        means: the last CMA means, (n,) float64 each, the newest last: as many as are averaged.
        driven: how the population did on the tracks that can be met again.
        best: (n,) float64, what had the best validation so far; None before the first validation.
        best_generation, best_validation: when and how good that was.
        env_steps, seconds: so far.
    """

    search: Search
    history: list[Generation] = field(default_factory=list)
    means: list[NDArray[np.float64]] = field(default_factory=list)
    driven: list[DrivenTrack] = field(default_factory=list)
    best: NDArray[np.float64] | None = None
    best_generation: int | None = None
    best_validation: float | None = None
    env_steps: int = 0
    seconds: float = 0.0

    @property
    def generation(self) -> int:
        """Generations completed."""
        return len(self.history)

    def remember_mean(self, count: int) -> None:
        """Add the CMA mean to the last ones, of which ``count`` are kept."""
        self.means = [*self.means, self.search.mean][-count:]

    @property
    def average_mean(self) -> NDArray[np.float64]:
        """The average of the last CMA means, (n,).

        With noisy fitness the mean wanders about an optimum; the average of where it was is nearer to it (Polyak &
        Juditsky 1992).
        """
        return np.asarray(np.mean(self.means, axis=0))

    def to_bytes(self) -> bytes:
        """A numpy ``.npz``: mean, sigma and C for any reader, and all of the state for ``from_bytes``."""
        progress: dict[str, Any] = {
            "history": [asdict(row) for row in self.history],
            "driven": [asdict(track) for track in self.driven],
            "best_generation": self.best_generation,
            "best_validation": self.best_validation,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        np.savez(
            buffer,
            mean=self.search.mean,
            sigma=np.float64(self.search.sigma),
            C=self.search.covariance,
            means=np.array(self.means),
            best=self.best if self.best is not None else np.empty(0),
            progress=np.frombuffer(json.dumps(progress).encode(), np.uint8),
            pycma=np.frombuffer(self.search.to_bytes(), np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> EvolutionState:
        """The inverse, for bytes whose checksum was verified (pycma's state is unpickled)."""
        progress = read_progress(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(
                search=Search.from_bytes(arrays["pycma"].tobytes()),
                history=progress["history"],
                driven=progress["driven"],
                means=[*arrays["means"]],
                best=arrays["best"] if len(arrays["best"]) else None,
                best_generation=progress["best_generation"],
                best_validation=progress["best_validation"],
                env_steps=progress["env_steps"],
                seconds=progress["seconds"],
            )


def read_progress(data: bytes) -> dict[str, Any]:
    """What a checkpoint says of the evolution's progress, without unpickling anything.

    Keys: ``history`` (of ``Generation``), ``driven`` (of ``DrivenTrack``), ``best_generation``, ``best_validation``,
    ``env_steps``, ``seconds``.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        progress: dict[str, Any] = json.loads(arrays["progress"].tobytes())
    progress["history"] = [Generation(**row) for row in progress["history"]]
    progress["driven"] = [DrivenTrack(**track) for track in progress["driven"]]
    return progress
