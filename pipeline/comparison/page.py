"""The files of a comparison: one self-contained HTML page, JSON and CSV."""

from __future__ import annotations

import json
from importlib import resources

import jinja2
from markupsafe import Markup

from pipeline.base.formatting import counted, duration, number
from pipeline.comparison import figures
from pipeline.comparison.scores import Comparison, to_csv, to_json, verdict
from pipeline.reporting import alt_texts
from pipeline.reporting.figures import returns
from pipeline.storage.layout import PAGE
from pipeline.storage.local import remove_temporary_folder
from pipeline.storage.store import Store


def write(found: Comparison, store: Store, title: str) -> str:
    """Write a comparison as a page, as JSON and as CSV.

    Args:
        found: Comparison.
        store: Store of the folder.
        title: Title of the page.

    Returns:
        Location of the page.
    """
    store.write("comparison.json", json.dumps(to_json(found), indent=1).encode())
    store.write("episodes.csv", to_csv(found).encode())
    store.write(PAGE, make_page(found, title))
    remove_temporary_folder(store)
    return store.locate(PAGE)


def make_page(found: Comparison, title: str) -> bytes:
    """Make the page of a comparison.

    Args:
        found: Comparison.
        title: Title of the page.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, duration=duration, counted=counted)
    template = (resources.files("pipeline.comparison") / "page.html").read_text("utf-8")
    values = {
        "title": title,
        "css": Markup((resources.files("pipeline.reporting") / "page.css").read_text("utf-8")),
        "found": found,
        "verdicts": [verdict(row, found.scores[0].name) for row in found.scores[1:]],
        "figures": _figures(found),
        "axes": figures.AXES,
    }
    return environment.from_string(template).render(values).encode()


def _figures(found: Comparison) -> dict[str, Markup | None]:
    means = ", ".join(f"{row.name} {number(row.score.mean, 1)}" for row in found.scores)
    rows: list[tuple[str, list[float], tuple[float, float] | None]] = [
        (score.name, arm.returns(found.tracks).ravel().tolist(), (score.score.low, score.score.high))
        for arm, score in zip(found.arms, found.scores, strict=True)
    ]
    svgs: dict[str, str | None] = {
        "scores": figures.scores(found.scores, found.published, f"Mean return of each arm: {means}."),
        "returns": returns(rows, None, alt_texts.returns(rows)),
    }
    for axis, words in figures.AXES.items():
        alt = f"Validation return by {words}, a line for each arm. Final test scores: {means}."
        svgs[axis] = figures.learning_curves(found.arms, axis, alt)
    return {name: None if svg is None else Markup(svg) for name, svg in svgs.items()}
