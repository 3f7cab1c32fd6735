"""Text alternatives of the report's pictures, for readers who cannot see them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pipeline.base.formatting import number
from pipeline.data.quality import predicted_ends
from pipeline.evolution.state import Generation
from pipeline.reporting import figures
from pipeline.reporting.dream_film import DreamFilm
from pipeline.reporting.findings import FilmedDrive, Findings, Values


def learning_curve(run: Findings, by: figures.Axis, *, with_paper: bool) -> str:
    """Describe the run's learning curve by ``"generation"``, ``"env_steps"`` or ``"dream_steps"``."""
    first, last = run.history[0], run.history[-1]

    def place(row: Generation) -> str:
        return f"generation {number(row.generation)}" if by == "generation" else f"{number(getattr(row, by))} steps"

    where = place(last)
    axis = by.replace("env_", "environment ").replace("_", " ")
    fitness = "mean fitness in dreams" if run.dreaming else "mean fitness"
    text = (
        f"Learning curve, return by {axis}: {fitness} goes from "
        f"{number(first.fitness_mean, 1)} to {number(last.fitness_mean, 1)} in {where}."
    )
    best = run.best_validation
    if best is not None and best.validation_mean is not None:
        text += f" Validation is at its best with {number(best.validation_mean, 1)} in {place(best)}."
        if best.dream_mean is not None:
            text += f" The same controller scores {number(best.dream_mean, 1)} in dreams."
    if run.dreaming:
        text += f" {predicted_ends(run.mdnrnn_held_out)}."
    if with_paper and run.published is not None:
        generation, mean = run.published.curve[-1]
        at = f"generation {number(generation)}" if by == "generation" else "the end"
        text += f" The paper's CMA mean reaches {number(mean, 1)} at {at}."
    return text


def returns(rows: Sequence[tuple[str, Sequence[float], tuple[float, float] | None]]) -> str:
    """Describe distributions of returns; rows as in ``figures.returns``."""
    parts = [
        f"{label}: mean {number(fmean(values), 1)}, from {number(min(values), 1)} to {number(max(values), 1)}"
        for label, values, _ in rows
    ]
    return f"Returns of single episodes. {'; '.join(parts)}."


def loss(name: str, training: Sequence[Values], held_out: Sequence[Values], key: str, unit: str) -> str:
    """Describe a training curve.

    Args:
        name: Name of the model.
        training: Rows of the training curve.
        held_out: Rows of the held-out losses, one for each epoch.
        key: Name of the shown loss in a row.
        unit: Unit of the loss, in words.
    """
    parts = []
    if training:
        parts.append(f"from {number(training[0][key], 3)} to {number(training[-1][key], 3)} on training episodes")
    if held_out:
        best = min(held_out, key=lambda row: row["loss"])[key]
        count = sum(row["step"] > 0 for row in held_out)  # at step 0: the weights of the round before
        epochs = f"{number(count)} epoch{'s' * (count != 1)}"
        parts.append(f"on held-out episodes {number(best, 3)} at its best of {epochs}")
    return f"Training of the {name}, {unit}: {', '.join(parts)}."


def drive(film: FilmedDrive) -> str:
    """Describe the filmed episode."""
    return (
        f"The controller plays test track {film.track} for {number(film.steps)} steps and earns "
        f"{number(film.episode_return, 1)}."
    )


def reconstructions(grey_levels: float | None) -> str:
    """Describe V's reconstructions.

    Args:
        grey_levels: Root mean squared error of a colour value, of 255; None if there is no training curve.
    """
    text = "Frames in the upper row, V's reconstructions below"
    return (
        f"{text}."
        if grey_levels is None
        else f"{text}. Held-out frames differ by {number(grey_levels, 1)} of 255 on average (RMS)."
    )


def dream(film: DreamFilm) -> str:
    """Describe the dream."""
    return (
        f"The real episode on the left, the dream on the right: M sees {film.warm_up_steps} steps, then dreams "
        f"{film.dream_steps}. Its z is {number(film.latent_errors[0], 2)} from the real one at first "
        f"and {number(film.latent_errors[-1], 2)} at the end (RMS over latent dimensions)."
    )
