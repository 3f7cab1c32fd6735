"""The checkpointed state of an evolution."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evolution.replay import PlayedTrack
from pipeline.evolution.search import Search


@dataclass(frozen=True)
class Generation:
    """One row of the history.

    Attributes:
        generation: Generation number, from 1.
        env_steps: Environment steps so far, including validation.
        seconds: Wall-clock seconds so far, over all sessions. Not deterministic.
        fitness_min, fitness_mean, fitness_max, fitness_sd: Statistics over the candidates; a candidate's fitness is
            its mean return.
        sigma: CMA-ES step size after this generation.
        validation_mean, validation_sd: Statistics of the returns on the validation tracks, for the CMA mean or the
            average of the last means; None if this generation was not validated.
        dream_mean, dream_sd: Statistics of the returns of the same controller in the dreams of a validation; None if
            candidates are scored in the environment, or if this generation was not validated.
        dream_steps: Steps in dreams so far.
        time: End of the generation in seconds since the epoch. Not deterministic.
        non_finite: Episodes, including validation, with a non-finite return in both attempts.
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
    dream_mean: float | None = None
    dream_sd: float | None = None
    dream_steps: int = 0


@dataclass
class EvolutionState:
    """Progress of an evolution.

    Attributes:
        search: CMA-ES search.
        history: One row per generation.
        means: Last CMA means, (n,) float64 each, newest last; at most the number to average.
        played: Population's scores on the tracks that can be repeated.
        best: Controller with the best validation so far, by the returns that ``evolve.select`` names, (n,) float64;
            None before the first validation.
        best_generation, best_validation: Generation of that controller and its mean of these returns; None before the
            first validation.
        env_steps, seconds: Environment steps and wall-clock seconds so far.
        dream_steps: Steps in dreams so far.
        dream_device: Kind of device that the dreams ran on, ``"cpu"`` or ``"cuda"``; None before the first.
    """

    search: Search
    history: list[Generation] = field(default_factory=list)
    means: list[NDArray[np.float64]] = field(default_factory=list)
    played: list[PlayedTrack] = field(default_factory=list)
    best: NDArray[np.float64] | None = None
    best_generation: int | None = None
    best_validation: float | None = None
    env_steps: int = 0
    seconds: float = 0.0
    dream_steps: int = 0
    dream_device: str | None = None

    @property
    def generation(self) -> int:
        """Number of completed generations."""
        return len(self.history)

    def remember_mean(self, count: int) -> None:
        """Append the current CMA mean to ``means``, keeping the last ``count``."""
        self.means = [*self.means, self.search.mean][-count:]

    @property
    def average_mean(self) -> NDArray[np.float64]:
        """Average of the last CMA means, (n,) float64.

        With noisy fitness, the mean wanders around an optimum; the average of its recent positions is closer to it
        (Polyak & Juditsky 1992).
        """
        return np.asarray(np.mean(self.means, axis=0))

    def to_bytes(self) -> bytes:
        """Serialise as a numpy ``.npz``: mean, sigma and C for any reader, the full state for ``from_bytes``."""
        progress: dict[str, Any] = {
            "history": [asdict(row) for row in self.history],
            "played": [asdict(track) for track in self.played],
            "best_generation": self.best_generation,
            "best_validation": self.best_validation,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "dream_steps": self.dream_steps,
            "dream_device": self.dream_device,
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
        """Restore a state from ``to_bytes``. Unpickles: use it only on bytes whose checksum was verified."""
        progress = read_progress(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(
                search=Search.from_bytes(arrays["pycma"].tobytes()),
                history=progress["history"],
                played=progress["played"],
                means=[*arrays["means"]],
                best=arrays["best"] if len(arrays["best"]) else None,
                best_generation=progress["best_generation"],
                best_validation=progress["best_validation"],
                env_steps=progress["env_steps"],
                seconds=progress["seconds"],
                dream_steps=progress["dream_steps"],
                dream_device=progress["dream_device"],
            )


def read_progress(data: bytes) -> dict[str, Any]:
    """Read an evolution's progress from a checkpoint, without unpickling anything.

    Returns:
        Dictionary with the keys ``history`` (list of ``Generation``), ``played`` (list of ``PlayedTrack``),
        ``best_generation``, ``best_validation``, ``env_steps``, ``seconds`` and ``dream_steps``.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        progress: dict[str, Any] = json.loads(arrays["progress"].tobytes())
    progress["history"] = [Generation(**row) for row in progress["history"]]
    progress["played"] = [PlayedTrack(**track) for track in progress["played"]]
    return progress
