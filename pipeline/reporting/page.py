"""The page: a run's results, figures and pictures as one self-contained HTML file."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.base.formatting import duration, fact, number, size
from pipeline.config.evolution import EvolveConfig
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.data.frames import FRAME_SIZE
from pipeline.data.quality import Assessment, controller_names, predicted_ends
from pipeline.data.rounds import config_in, rounds_of
from pipeline.reporting import alt_texts, figures
from pipeline.reporting.dream_film import TEMPERATURE, DreamFilm
from pipeline.reporting.findings import Findings, LossCurve, Score
from pipeline.reporting.published import PublishedScale
from pipeline.rollouts.video import still_of
from pipeline.storage.layout import CONFIG
from pipeline.training.assessment import DREAM_STEPS

_UNIT_GAUSSIAN_NATS = 0.5 * math.log(2 * math.pi * math.e)  # its entropy


@dataclass(frozen=True)
class Page:
    """A page whose links to the run's files depend on its location."""

    template: jinja2.Template
    values: Mapping[str, Any]

    def at(self, root: str) -> bytes:
        """Render the page.

        Args:
            root: Path of the run directory relative to the page's folder, such as ``..``.
        """
        return self.template.render(self.values, root=root).encode()


def make_page(
    config: RunConfig, run: Findings, film: DreamFilm | None, drive: bytes | None, reconstructions: bytes | None
) -> Page:
    """Make the page of a run.

    Args:
        config: Config of the run.
        run: Results of the run.
        film: Film of a dream; None if there is none.
        drive: MP4 of a drive; None if none was filmed.
        reconstructions: PNG of V's reconstructions; None if there is none.
    """
    of_round = config_in(config, rounds_of(config.rounds)[-1])
    scale = run.published.scale if run.published else None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, duration=duration, size=size, fact=fact)
    package = resources.files("pipeline.reporting")
    best_vae, best_mdnrnn = (min(c.held_out, key=lambda r: r["loss"], default=None) for c in (run.vae, run.mdnrnn))
    grey_levels = 255 * math.sqrt(best_vae["reconstruction"] / FRAME_SIZE) if best_vae else None
    values = {
        "css": Markup((package / "page.css").read_text("utf-8")),
        "script": Markup((package / "page.js").read_text("utf-8")),
        "run": run,
        "names": controller_names(run.selected_by),
        "differs": {score.controller: _differs(of_round.evolve, run, score) for score in run.scores},
        "best_validation": run.best_validation,
        "scale": _scale(of_round, run, scale) if scale else [],
        "verdict": _verdict(run, scale) if scale else "",
        "figures": _figures(run),
        "published_by_steps": _published_by_steps(run),
        "pictures": {
            "drive": drive and _data_uri(drive, "video/mp4"),
            "drive_still": drive and _data_uri(still_of(drive), "image/jpeg"),
            "reconstructions": reconstructions and _data_uri(reconstructions, "image/png"),
            "dream": film and _data_uri(film.video, "video/mp4"),
            "dream_still": film and _data_uri(still_of(film.video), "image/jpeg"),
        },
        "alt": {
            "drive": alt_texts.drive(run.drive) if run.drive else "",
            "reconstructions": alt_texts.reconstructions(grey_levels),
            "dream": alt_texts.dream(film) if film else "",
        },
        "film": film,
        "film_columns": _film_columns(film) if film else [],
        "temperature": TEMPERATURE,
        "game_from": _game_from(run),
        "ridge_from": figures.RIDGE_FROM,
        "best_vae": best_vae,
        "best_mdnrnn": best_mdnrnn,
        "held_out": _held_out(run.mdnrnn_held_out) if run.mdnrnn_held_out else [],
        "grey_levels": grey_levels,
        "free_nats": config.vae.kl_tolerance * config.vae.z_size,
        "unit_gaussian": _UNIT_GAUSSIAN_NATS,
        "size_bytes": sum(stage.size_bytes for stage in run.stages),
        "config_yaml": dump(config),
        "commands": _commands(config, run.directory),
    }
    return Page(environment.from_string((package / "page.html").read_text("utf-8")), values)


def _game_from(run: Findings) -> dict[str, int] | None:
    """First generation in the environment after dreams, and the steps before it; None if there is none."""
    generation = run.config["evolve"]["game_from"]
    if generation is None or len(run.history) < generation:
        return None
    before = run.history[generation - 2]
    return {"generation": generation, "dream_steps": before.dream_steps, "env_steps": before.env_steps}


def _held_out(found: Assessment) -> list[tuple[str, str, str]]:
    """Rows of the table of M's quality: quantity, value, comparison."""
    rows: list[tuple[str, str, str]] = []
    if found.nll is not None:
        rows.append(("Next z, negative log-likelihood per dimension", f"{found.nll:.3f} nats", "lower is better"))
    if found.dream_error is not None and found.copy_error is not None:
        rows.append(
            (
                f"Dream of {DREAM_STEPS} steps, distance of the expected z from the true one",
                f"{found.dream_error:.3f}",
                f"{found.copy_error:.3f} for a copy of the last true frame",
            )
        )
    if found.reward_error is not None:
        correlation = "–" if found.reward_correlation is None else f"{found.reward_correlation:.3f}"
        rows.append(("Reward, root of the mean squared error", f"{found.reward_error:.3f}", "0 is exact"))
        rows.append(("Reward, correlation with the true one", correlation, "1 is exact"))
    if found.end_recall is not None:
        rows.append(
            (
                "Ends that M predicts (recall)",
                f"{found.end_recall:.1%}",
                f"of {found.ends:,} ends by the environment; predicted: a probability above {found.end_threshold:g}",
            )
        )
        precision = "–" if found.end_precision is None else f"{found.end_precision:.1%}"
        rows.append(("Predicted ends that are true (precision)", precision, "100% is exact"))
    return rows


def _figures(run: Findings) -> dict[str, Markup | None]:
    names = controller_names(run.selected_by)
    rows: list[tuple[str, list[float], tuple[float, float] | None]] = [
        (f"{names[score.controller]} ({score.episodes:,})", run.returns[score.controller], (score.low, score.high))
        for score in run.scores
        if run.returns.get(score.controller)
    ]
    baseline = (f"random policy ({len(run.baseline.returns):,})", run.baseline.returns, None)
    reference = None
    if run.published is not None:
        first = run.published.scores[0]
        reference = (f"World Models, {first.mean:g}", first.mean)
    rows.append(baseline)
    curve = run.published if run.published and run.published.curve else None
    by_steps = curve if _published_by_steps(run) else None
    game_from = run.config["evolve"]["game_from"]
    steps: figures.Axis = "dream_steps" if run.dreaming and game_from is None else "env_steps"
    svgs = {
        "by_generation": figures.learning_curve(
            run.history, curve, "generation", alt_texts.learning_curve(run, "generation", with_paper=curve is not None)
        ),
        "by_env_steps": figures.learning_curve(
            run.history, by_steps, steps, alt_texts.learning_curve(run, steps, with_paper=by_steps is not None)
        ),
        "returns": figures.returns(rows, reference, alt_texts.returns(rows)),
        "vae": _loss("VAE", run.vae, "loss", "loss", log=True),
        "mdnrnn": _loss("MDN-RNN", run.mdnrnn, "nll", "nats per latent dimension"),
    }
    return {name: None if svg is None else Markup(svg) for name, svg in svgs.items()}


def _loss(name: str, curve: LossCurve, key: str, unit: str, *, log: bool = False) -> str | None:
    if not curve.training and not curve.held_out:
        return None
    alt = alt_texts.loss(name, curve.training, curve.held_out, key, unit)
    return figures.loss(name, curve.training, curve.held_out, key, unit, alt, log=log)


def _published_by_steps(run: Findings) -> bool:
    """Whether to show the paper's points by environment steps too: not if its scale dwarfs the run's."""
    if run.published is None or not run.published.curve or run.dreaming:
        return False
    first, _ = run.published.curve[0]
    return run.history[-1].env_steps >= 0.1 * run.published.curve_env_steps(first)


def _differs(evolve: EvolveConfig, run: Findings, score: Score) -> str:
    """Conditions of a score of this run, in words."""
    population = f"{evolve.population_size} x {evolve.episodes}"
    where = run.published.ours if run.published else run.environment
    if score.controller == "best":
        chosen = run.chosen
        assert chosen is not None, "there is a best controller where there was validation"
        first = max(1, chosen.generation + 1 - evolve.average_means)
        what = f"the CMA mean of generation {number(chosen.generation)}"
        if first < chosen.generation:
            what = f"the average of the CMA means of generations {number(first)} to {number(chosen.generation)}"
        places, reached = f"{number(evolve.validation_episodes)} validation tracks", chosen.validation_mean
        trust = ""
        if run.selected_by == "dream":
            places, reached = f"{number(evolve.validation_dreams)} dreams", chosen.dream_mean
            trust = f" ({predicted_ends(run.mdnrnn_held_out)})"
        return f"{where}; {what}, chosen on {places}, where it reached {number(reached or 0.0, 1)}{trust}"
    text = f"{where}; after {number(len(run.history))} generations of {population} episodes"
    if len(run.scores) > 1:
        return text
    if not run.validations:
        return f"{text}; never validated"
    return f"{text}; also the {controller_names(run.selected_by)['best']}"


def _scale(config: RunConfig, run: Findings, paper: PublishedScale) -> list[tuple[str, str, str]]:
    """Rows of (quantity, this run's value, the paper's value)."""
    evolve = next(stage for stage in run.stages if stage.name == "evolve")
    workers = evolve.facts.get("workers")
    time = duration(evolve.seconds) + (f" on {workers} worker{'s' * (workers != 1)}" if workers else "")
    return [
        ("Random episodes that V and M learn from", number(config.collect.episodes), number(paper.episodes)),
        (
            "Candidates x episodes in a generation",
            f"{config.evolve.population_size} x {config.evolve.episodes}",
            f"{paper.population_size} x {paper.candidate_episodes}",
        ),
        ("Generations", number(len(run.history)), number(paper.generations)),
        ("Environment steps of the evolution", number(run.history[-1].env_steps), number(paper.env_steps)),
        ("Time of the evolution", time, f"{number(paper.hours)} hours on {paper.cores} cores"),
        ("Test episodes", number(run.headline.episodes), number(paper.test_episodes)),
    ]


def _verdict(run: Findings, paper: PublishedScale) -> str:
    """Scale of the run against the paper's, in words."""
    steps = run.history[-1].env_steps
    share = 100 * steps / paper.env_steps
    much = f"{share:.2g} %" if share >= 0.001 else "less than 0.001 %"
    text = f"The evolution ran {much} of the paper's environment steps."
    if share < 1:
        text += " At this size the run shows that the pipeline works; it does not reproduce the paper's result."
    if run.headline.episodes < paper.test_episodes:
        text += (
            f" With {run.headline.episodes} test episode{'s' * (run.headline.episodes != 1)}, against the paper's "
            f"{paper.test_episodes}, the mean is uncertain."
        )
    return text


def _film_columns(film: DreamFilm) -> list[dict[str, Any]]:
    columns = [
        {
            "step": step,
            "dreamt": step >= film.warm_up_steps,
            "real": _data_uri(real, "image/png"),
            "decoded": _data_uri(decoded, "image/png"),
        }
        for step, real, decoded in zip(film.shown_steps, film.real, film.decoded, strict=True)
    ]
    first = next((column for column in columns if column["dreamt"]), None)
    return [{**column, "begins": column is first} for column in columns]


def _commands(config: RunConfig, directory: str) -> list[str]:
    """Commands to run next: in the run's directory, or anywhere for a bucket."""
    place = shlex.quote(directory)
    more = f"evolve.generations={2 * config.evolve.generations}"
    if config.rounds.count > 1:
        more = f"rounds.count={config.rounds.count + 1}"
    return [
        f"world-models status {place}",
        f"world-models run {shlex.quote(f'{directory}/{CONFIG}')} --run-dir {place} -o {more}",
        f"tensorboard --logdir {place}",
    ]


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
