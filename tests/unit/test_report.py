"""The report of a small run that is put together through the storage API, against figures worked out here."""

from __future__ import annotations

import html
import io
import json
import math
import statistics
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import DamagedDataError, StorageError
from pipeline.executor import InProcessExecutor
from pipeline.models import weights
from pipeline.models.vae import output_to_frames
from pipeline.reporting import findings, page
from pipeline.reporting.dream_film import film_dream
from pipeline.stages import report, train_mdnrnn
from pipeline.storage.manifest import read_records
from pipeline.storage.shards import read_latents, shard_name
from pipeline.storage.store import LocalStore, Store
from tests.made_run import (
    PER_SHARD,
    SECONDS,
    STAGES,
    VAE_ROWS,
    VERSIONS,
    history,
    make_config,
    put_data,
    put_evaluation,
    put_metrics,
)

# The paper's points as issue and paper have them, typed here on their own.
PAPER = {25: 823, 50: 867, 200: 880, 500: 891, 1800: 900.5}

RETURNS = {"mean": [100.5, 250.25, 300.0], "best": [120.0, 270.5, 310.0]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, dict[str, Any], str, list[float], Any]:
    """One run and its report: the store, the JSON, the page, the random policy's returns, the summary."""
    store, config = LocalStore(tmp_path_factory.mktemp("run")), make_config()
    random_returns = put_data(store, config)
    put_metrics(store)
    summary = put_evaluation(store, 6, RETURNS)
    assert report.run(config, store, InProcessExecutor()) == {"evaluation": "000006-000003"}
    return store, json.loads(store.read("report/report.json")), read_page(store), random_returns, summary


def read_page(store: Store) -> str:
    return store.read("report/index.html").decode()


def shown(text: str) -> str:
    """A page's source with entities and line breaks taken out."""
    return " ".join(html.unescape(text).split())


class Links(HTMLParser):
    """What a page links to, its ids, and whether its tags match."""

    VOID = frozenset(["meta", "img", "br", "link", "input", "hr"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attributes if name == "id"]
        self.links += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "srcset", "poster", "data")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_the_page_needs_nothing_beside_itself(made: Any) -> None:
    _, _, text, _, _ = made
    links = Links(text)
    assert links.links and all(link.startswith(("data:image/", "#")) for link in links.links)
    assert all(link[1:] in links.ids for link in links.links if link.startswith("#"))
    assert len(set(links.ids)) == len(links.ids)
    assert not {"script", "link", "iframe", "object", "embed"} & set(links.tags)
    assert links.tags.count("svg") == 5
    assert "@import" not in text and text.count("url(") == text.count("url(#")
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_a_random_policy_that_began_anywhere_is_no_baseline_of_laps(made: Any, tmp_path: Path) -> None:
    store, config = LocalStore(tmp_path), make_config(collect__exploring_starts=0.5)
    put_data(store, config)
    put_metrics(store)
    put_evaluation(store, 6, RETURNS)
    report.run(config, store, InProcessExecutor())
    exploring, ordinary = shown(read_page(store)), shown(made[2])
    assert "cut after 40 steps; 50 % of them began anywhere on the road, at speed<" in exploring
    assert "cut after 40 steps<" in ordinary
    assert ("Random policy, mean return" in exploring, "Random policy, mean return" in ordinary) == (False, True)


def test_every_figure_is_what_was_put_in(made: Any) -> None:
    store, figures, _, random_returns, summary = made
    headline = dict(figures["headline"])
    assert headline.pop("env_steps") == 209 + 6 * 320 + 6 * 40
    assert headline.pop("seconds") == sum(SECONDS.values())
    assert headline == {"controller": "best", **summary["best"]}
    assert figures["scores"] == [{"controller": name, **summary[name]} for name in ("best", "mean")]
    assert figures["returns"] == RETURNS
    assert figures["history"] == [asdict(row) for row in history(6, 2)]
    assert figures["tag"] == "000006-000003"
    assert figures["frames"] == 209
    baseline = figures["baseline"]
    assert baseline["returns"] == random_returns and baseline["policy"] == "random-controller"
    assert baseline["mean"] == pytest.approx(statistics.mean(random_returns), rel=1e-12)
    assert baseline["sd"] == pytest.approx(statistics.stdev(random_returns), rel=1e-12)
    plain = [{k: v for k, v in row.items() if k != "time"} for row in VAE_ROWS]
    assert figures["vae"]["training"] == plain[:2]
    assert figures["vae"]["held_out"] == [{"step": 40, "loss": 62.5, "reconstruction": 48.0, "kl": 14.5}]
    assert figures["mdnrnn"] == {
        "training": [{"step": 10, "loss": 1.5, "nll": 1.4}],
        "held_out": [{"step": 10, "loss": 1.3, "nll": 1.2}],
    }
    stages = {stage["name"]: stage for stage in figures["stages"]}
    for prefix, name in STAGES.items():
        assert stages[name]["seconds"] == SECONDS[prefix]
        assert stages[name]["size_bytes"] == sum(
            len(store.read(record.key)) for record in read_records(store, prefix).values()
        )
    assert [stages[name]["env_steps"] for name in STAGES.values()] == [209, None, None, None, 1920, 240]
    assert stages["train-vae"]["facts"] == {"steps": 40, "device": "cpu", "best_epoch": 1}
    assert (figures["versions"], figures["cpus"], figures["code_versions"]) == (VERSIONS, ["a CPU"], ["c0de"])
    assert figures["config"] == make_config().model_dump(mode="json")


def test_the_page_shows_the_figures(made: Any) -> None:
    _, _, text, random_returns, _ = made
    words = shown(text)
    assert "<h1><small>Return</small> 233.5 <small>± 100.3</small></h1>" in words  # of 120, 270.5 and 310
    assert "120.2 to 309.8" in words
    assert "This run: best on validation" in words and "This run: CMA mean" in words
    assert f">{statistics.mean(random_returns):.1f} ±".replace("-", "\N{MINUS SIGN}") in words
    assert "at best it reached 54.0, in generation 6" in words
    assert "906 ± 21" in words and "arXiv 1803.10122" in words and "arXiv 2003.08165" in words
    assert "less than 0.001 % of the paper's environment steps" in words
    assert "2 min 7 s" in words  # 127.25 s
    root_mean_square = 255 * math.sqrt(48.0 / (64 * 64 * 3))
    assert f"{root_mean_square:.1f} of 255" in words
    assert "population_size: 4" in text


def test_the_papers_curve_stands_beside_carracing(made: Any) -> None:
    _, figures, text, _, _ = made
    curve = figures["published"]["curve"]
    assert {point["generation"]: point["mean"] for point in curve} == PAPER
    for point in curve:
        assert point["env_steps"] == pytest.approx(1.72e9 * point["generation"] / 1800)
    assert [(s["mean"], s["sd"]) for s in figures["published"]["scores"]] == [
        (906, 21), (632, 251), (788, 141), (860, 120), (870, 120), (914, 15)
    ]  # fmt: skip
    assert "World Models, CMA mean" in text
    assert "from 23,888,889 steps on" in shown(text)  # by steps it dwarfs this run


def test_an_environment_without_published_numbers(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config(env__id="elsewhere:Else")
    put_data(local_store, config)
    put_metrics(local_store)
    put_evaluation(local_store, 6, RETURNS)
    report.run(config, local_store, executor)
    text = read_page(local_store)
    assert json.loads(local_store.read("report/report.json"))["published"] is None
    assert "No published numbers are kept for elsewhere:Else" in text
    assert "906" not in text and "World Models, CMA mean" not in text and "1803.10122" not in text


def test_what_is_missing_is_said(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config(mdnrnn__init="random", evolve__validate_every=25, name="<b>&amp;")
    put_data(local_store, config)
    put_evaluation(local_store, 6, {"mean": RETURNS["mean"]}, validate_every=25)
    report.run(config, local_store, executor)
    text = read_page(local_store)
    Links(text)
    words = shown(text)
    assert "Validation was never driven: it is due every 25 generations, and there were 6." in words
    assert "never validated" in words and "best on validation" not in words
    assert "vae/metrics.jsonl is missing or empty" in words
    assert "M was left as initialised" in words
    assert "run &lt;b&gt;&amp;amp; ·" in text
    figures = json.loads(local_store.read("report/report.json"))
    assert figures["headline"]["controller"] == "mean"
    assert figures["vae"] == figures["mdnrnn"] == {"training": [], "held_out": []}
    assert figures["dream"]["unseen"] is True


def test_a_run_that_grew_gets_another_report(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config()
    put_data(local_store, config)
    put_metrics(local_store)
    put_evaluation(local_store, 6, RETURNS)
    report.run(config, local_store, executor)
    first, first_page = read_records(local_store, "report"), read_page(local_store)
    report.run(config, local_store, executor)  # nothing has changed: the same bytes, the same records
    assert read_records(local_store, "report") == first and read_page(local_store) == first_page

    put_evaluation(local_store, 9, {"mean": [400.0, 500.0, 600.0, 700.0], "best": [1.0, 2.0, 3.0, 4.0]})
    assert report.run(config, local_store, executor) == {"evaluation": "000009-000004"}
    records = read_records(local_store, "report")
    assert len(first) == 2 and len(records) == 4 and first.items() <= records.items()
    new = {record.name.rpartition(".")[2]: record for name, record in records.items() if name not in first}
    assert all("-000009-000004-" in record.name for record in new.values())
    assert local_store.read(new["html"].key) == local_store.read("report/index.html") != first_page.encode()
    figures = json.loads(local_store.read("report/report.json"))
    assert local_store.read(new["json"].key) == local_store.read("report/report.json")
    assert len(figures["history"]) == 9 and figures["returns"]["mean"] == [400.0, 500.0, 600.0, 700.0]
    assert local_store.read(figures["drive"]["key"]) == b"GIF89a of 000009-000004"


def test_the_dream_is_of_an_unseen_episode_and_begins_where_it_says(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, figures, _, random_returns, _ = made
    config = make_config()
    film = InProcessExecutor().run(
        film_dream, config, store, resources=report.Resources(), on_update=lambda update: None
    )
    assert film is not None and film.unseen

    drawn = []  # what the training stage itself holds out
    original = train_mdnrnn.held_out_episodes
    monkeypatch.setattr(train_mdnrnn, "held_out_episodes", lambda *a: drawn.append(original(*a)) or drawn[-1])
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(train_mdnrnn, "BlockStream", lambda *a, **k: 1 / 0)
        list(train_mdnrnn.train(config, store))
    assert len(drawn[0]) == 2
    assert film.episode == max(drawn[0], key=lambda episode: random_returns[episode])

    record = read_records(store, "latents")[shard_name(film.episode // PER_SHARD)]
    latents = next(episode for episode in read_latents(store, record) if episode.id == film.episode)
    assert film.warm_up_steps == len(latents) // 3
    assert film.warm_up_steps + film.dream_steps == len(latents) == film.shown_steps[-1] + 1
    assert len(film.latent_errors) == film.dream_steps and min(film.latent_errors) > 0
    with torch.inference_mode():
        decoded = output_to_frames(weights.new_vae(config).eval().decode(torch.from_numpy(latents.mu)))
    for step, picture in zip(film.shown_steps, film.decoded, strict=True):
        far = int(np.abs(np.asarray(Image.open(io.BytesIO(picture)), np.int64) - decoded[step]).max())
        assert (far <= 1) == (step < film.warm_up_steps), step
    with Image.open(io.BytesIO(film.gif)) as gif:
        assert getattr(gif, "n_frames", 1) == len(latents)
    assert figures["dream"]["latent_errors"] == film.latent_errors


def test_no_dream_where_no_episode_has_two_steps(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config()
    put_data(local_store, config, [1] * 6)
    put_metrics(local_store)
    put_evaluation(local_store, 6, RETURNS)
    report.run(config, local_store, executor)
    assert json.loads(local_store.read("report/report.json"))["dream"] is None
    assert "No collected episode has two steps" in read_page(local_store)


def test_an_unfinished_or_damaged_run_is_refused(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config()
    put_data(local_store, config)
    with pytest.raises(StorageError, match=r"evolution/MANIFEST\.json is missing"):
        report.run(config, local_store, executor)
    put_evaluation(local_store, 6, RETURNS)
    drive = read_records(local_store, "evaluation")["drive-000006-000003.gif"]
    local_store.write(drive.key, b"x" * drive.size_bytes)
    with pytest.raises(DamagedDataError, match=r"drive-000006-000003-.*\.gif"):
        report.run(config, local_store, executor)
    assert not local_store.list("report/")


def test_long_curves_are_thinned_by_means() -> None:
    rows = [{"step": float(step), "loss": float(step * step)} for step in range(1, 12)]
    assert findings.thinned(rows, 11) == rows
    assert findings.thinned(rows, 4) == [
        {"step": 3.0, "loss": 14 / 3},
        {"step": 6.0, "loss": 77 / 3},
        {"step": 9.0, "loss": 194 / 3},
        {"step": 11.0, "loss": 221 / 2},
    ]
    assert findings.thinned([], 4) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (page.number(1234.56, 1), "1,234.6"),
        (page.number(-3.21, 1), "\N{MINUS SIGN}3.2"),
        (page.number(-0.04, 1), "0.0"),
        (page.duration(5.68), "5.7 s"),
        (page.duration(59.97), "1 min 0 s"),
        (page.duration(200), "3 min 20 s"),
        (page.duration(4320), "1 h 12 min"),
        (page.size(999), "999 B"),
        (page.size(999_600), "1 MB"),
        (page.size(1_234_567), "1.23 MB"),
        (page.size(25.7e12), "25.7 TB"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected
