"""The report of a small run, made with the storage API, against numbers computed here."""

from __future__ import annotations

import html
import io
import json
import math
import re
import statistics
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.errors import DamagedDataError, StorageError
from pipeline.data.artifacts import shard_name
from pipeline.data.shards import read_latents
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Resources
from pipeline.models import weights
from pipeline.models.vae import output_to_frames
from pipeline.reporting import findings
from pipeline.reporting.dream_film import film_dream
from pipeline.stages import report, train_mdnrnn
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from pipeline.storage.store import Store
from pipeline.training.held_out import held_out_so_far
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

# The points of the paper's curve, copied here independently of the code.
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


def without_pictures(text: str) -> str:
    """A page's source without the base64 of its pictures."""
    return re.sub(r"data:[^\"]*", "", text)


def shown(text: str) -> str:
    """A page's source with entities and line breaks taken out."""
    return " ".join(html.unescape(text).split())


class Links(HTMLParser):
    """The loaded files of a page, its links, ids and texts of pictures, and whether its tags match."""

    VOID = frozenset(["meta", "img", "br", "link", "input", "hr"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attributes if name == "id"]
        self.words += [value or "" for name, value in attributes if name in ("alt", "aria-label")]
        if tag == "a" and attributes[0][0] == "href":
            self.anchors.append(attributes[0][1] or "")
            attributes = attributes[1:]
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


def test_page_needs_no_other_file(made: Any) -> None:
    _, _, text, _, _ = made
    links = Links(text)
    assert links.links and all(link.startswith(("data:", "#")) for link in links.links)
    assert all(link[1:] in links.ids for link in links.links if link.startswith("#"))
    assert len(set(links.ids)) == len(links.ids)
    assert not {"link", "iframe", "object", "embed"} & set(links.tags)
    assert links.tags.count("svg") == 5
    assert "@import" not in text and text.count("url(") == text.count("url(#")
    # URLs appear only where a reader may follow them.
    words = without_pictures(text).replace("http://www.w3.org/", "")
    assert words.count("http") == len([address for address in links.anchors if "http" in address]) > 0


def test_page_links_to_sources_and_files_of_the_run(made: Any) -> None:
    store, numbers, text, _, _ = made
    anchors = Links(text).anchors
    assert {link for link in anchors if link.startswith("https:")} == {
        "https://arxiv.org/abs/1803.10122", "https://arxiv.org/abs/2003.08165", "https://arxiv.org/abs/2109.02869",
        "https://ctallec.github.io/world-models/", "https://github.com/xtma/pytorch_car_caring",
    }  # fmt: skip
    files = {link.removeprefix("../") for link in anchors if link.startswith("../")}
    assert files >= {"report/report.json", "config.yaml"}
    assert all(store.exists(key) for key in files - {"config.yaml"})
    assert set(numbers["files"].values()) == files - {"report/report.json", "config.yaml"}
    assert {key.split("/")[0] for key in files} >= {"vae", "mdnrnn", "evolution", "evaluation"}


def test_page_shows_no_path_of_the_machine(made: Any) -> None:
    store, numbers, text, _, _ = made
    for words in (without_pictures(text), json.dumps(numbers)):
        assert store.locate() not in words and f"{Path.home()}/" not in words
    assert numbers["directory"] == "."
    assert "world-models run ./config.yaml --run-dir . -o evolve.generations=12" in shown(text)


def test_run_in_a_bucket_is_named_by_its_url(store: Store, executor: InProcessExecutor) -> None:
    config = make_config()
    put_data(store, config)
    put_evaluation(store, 6, RETURNS)
    report.run(config, store, executor)
    where = store.locate() if "://" in store.locate() else "."
    assert f"world-models status {where}" in shown(read_page(store))


def test_pictures_have_texts_with_numbers(made: Any) -> None:
    _, numbers, text, random_returns, _ = made
    words = Links(text).words
    rows = numbers["history"]
    by_generation, by_steps = (
        f"mean fitness goes from {rows[0]['fitness_mean']:.1f} to {rows[-1]['fitness_mean']:.1f} in {end}."
        for end in ("generation 6", "1,920 steps")
    )
    curves = [text for text in words if text.startswith("Learning curve, return")]
    assert len(curves) == 2 and by_generation in curves[0] and by_steps in curves[1]
    assert "Validation is at its best with 54.0 in generation 6. The paper's CMA mean reaches 900.5" in curves[0]
    assert "paper" not in curves[1], "its points are not in that figure"
    low, high = (f"{value:.1f}".replace("-", "\N{MINUS SIGN}") for value in (min(random_returns), max(random_returns)))
    (returns,) = [text for text in words if text.startswith("Returns of single episodes")]
    assert "best on validation (3): mean 233.5, from 120.0 to 310.0" in returns and f"from {low} to {high}" in returns
    (vae,) = [
        text for text in words if text.startswith("Training of the VAE, loss: from 130.500 to 60.500 on training")
    ]
    assert vae.endswith("on held-out episodes 62.500 at its best of 1 epoch.")
    assert "The controller plays test track 0 for 40 steps and earns 100.5." in words
    (dream,) = [text for text in words if text.startswith("The real episode on the left")]
    errors = numbers["dream"]["latent_errors"]
    assert f"{errors[0]:.2f} from the real one at first and {errors[-1]:.2f} at the end" in dream
    assert not [text for text in words if not text.strip()]


def test_random_policy_with_random_starts_is_no_baseline(made: Any, tmp_path: Path) -> None:
    store, config = LocalStore(tmp_path), make_config(collect__exploring_starts=0.5)
    put_data(store, config)
    put_metrics(store)
    put_evaluation(store, 6, RETURNS)
    report.run(config, store, InProcessExecutor())
    exploring, ordinary = shown(read_page(store)), shown(made[2])
    assert "cut after 40 steps; 50 % of them began anywhere on the road, at speed<" in exploring
    assert "cut after 40 steps<" in ordinary
    assert ("Random policy, mean return" in exploring, "Random policy, mean return" in ordinary) == (False, True)


def test_report_numbers_match_the_input(made: Any) -> None:
    store, numbers, _, random_returns, summary = made
    headline = dict(numbers["headline"])
    assert headline.pop("env_steps") == 209 + 6 * 320 + 6 * 40
    assert headline.pop("seconds") == sum(SECONDS.values())
    assert headline == {"controller": "best", **summary["best"]}
    assert numbers["scores"] == [{"controller": name, **summary[name]} for name in ("best", "mean")]
    assert numbers["returns"] == RETURNS
    assert numbers["history"] == [asdict(row) for row in history(6, 2)]
    assert numbers["tag"] == "000006-000003"
    assert numbers["frames"] == 209
    baseline = numbers["baseline"]
    assert baseline["returns"] == random_returns and baseline["policy"] == "random-controller"
    assert baseline["mean"] == pytest.approx(statistics.mean(random_returns), rel=1e-12)
    assert baseline["sd"] == pytest.approx(statistics.stdev(random_returns), rel=1e-12)
    plain = [{k: v for k, v in row.items() if k != "time"} for row in VAE_ROWS]
    assert numbers["vae"]["training"] == plain[:2]
    assert numbers["vae"]["held_out"] == [{"step": 40, "loss": 62.5, "reconstruction": 48.0, "kl": 14.5}]
    assert numbers["mdnrnn"] == {
        "training": [{"step": 10, "loss": 1.5, "nll": 1.4}],
        "held_out": [{"step": 10, "loss": 1.3, "nll": 1.2}],
    }
    stages = {stage["name"]: stage for stage in numbers["stages"]}
    for prefix, name in STAGES.items():
        assert stages[name]["seconds"] == SECONDS[prefix]
        assert stages[name]["size_bytes"] == sum(
            len(store.read(record.key)) for record in read_records(store, prefix).values()
        )
    assert [stages[name]["env_steps"] for name in STAGES.values()] == [209, None, None, None, 1920, 240]
    assert stages["train-vae"]["facts"] == {"steps": 40, "device": "cpu", "best_epoch": 1}
    assert (numbers["versions"], numbers["cpus"], numbers["code_versions"]) == (VERSIONS, ["a CPU"], ["c0de"])
    assert numbers["config"] == make_config().model_dump(mode="json")


def test_page_shows_the_numbers_of_the_report(made: Any) -> None:
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


def test_curve_of_the_paper_is_shown_for_carracing(made: Any) -> None:
    _, numbers, text, _, _ = made
    curve = numbers["published"]["curve"]
    assert {point["generation"]: point["mean"] for point in curve} == PAPER
    for point in curve:
        assert point["env_steps"] == pytest.approx(1.72e9 * point["generation"] / 1800)
    assert [(s["mean"], s["sd"]) for s in numbers["published"]["scores"]] == [
        (906, 21), (632, 251), (788, 141), (860, 120), (870, 120), (914, 15),
        (881.1, 90.1), (891.0, 62.6), (829.4, 134.9),
    ]  # fmt: skip
    assert "World Models, CMA mean" in text
    assert "they would start at 23,888,889 steps" in shown(text)  # by steps it dwarfs this run


def test_report_of_an_environment_without_published_numbers(
    local_store: LocalStore, executor: InProcessExecutor
) -> None:
    config = make_config(env__id="elsewhere:Else")
    put_data(local_store, config)
    put_metrics(local_store)
    put_evaluation(local_store, 6, RETURNS)
    report.run(config, local_store, executor)
    text = read_page(local_store)
    assert json.loads(local_store.read("report/report.json"))["published"] is None
    assert "There are no published results for elsewhere:Else" in text
    words = without_pictures(text)
    assert "906" not in words and "World Models, CMA mean" not in words and "1803.10122" not in words


def test_missing_parts_are_named(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config(mdnrnn__init="random", evolve__validate_every=25, name="<b>&amp;")
    put_data(local_store, config)
    put_evaluation(local_store, 6, {"mean": RETURNS["mean"]}, validate_every=25)
    report.run(config, local_store, executor)
    text = read_page(local_store)
    Links(text)
    words = shown(text)
    assert "No validation was run: one is due every 25 generations, and there were 6." in words
    assert "never validated" in words and "best on validation" not in words
    assert "vae/metrics.jsonl is missing or empty" in words
    assert "M has its initial weights" in words
    assert "run &lt;b&gt;&amp;amp; ·" in text
    numbers = json.loads(local_store.read("report/report.json"))
    assert numbers["headline"]["controller"] == "mean"
    assert numbers["vae"] == numbers["mdnrnn"] == {"training": [], "held_out": []}
    assert numbers["dream"]["unseen"] is True


def test_extended_run_gets_a_new_report(local_store: LocalStore, executor: InProcessExecutor) -> None:
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
    # The same page, except for the base of its links.
    assert local_store.read(new["html"].key).replace(b"../..", b"..") == read_page(local_store).encode()
    assert read_page(local_store) != first_page
    numbers = json.loads(local_store.read("report/report.json"))
    assert local_store.read(new["json"].key) == local_store.read("report/report.json")
    assert len(numbers["history"]) == 9 and numbers["returns"]["mean"] == [400.0, 500.0, 600.0, 700.0]
    assert local_store.read(numbers["files"]["the drive as a GIF"]) == b"GIF89a of 000009-000004"


def test_dream_uses_a_held_out_episode_and_names_its_start(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, numbers, _, random_returns, _ = made
    config = make_config()
    dream = InProcessExecutor().run(film_dream, config, store, resources=Resources(), on_update=lambda update: None)
    assert dream is not None and dream.unseen

    drawn: list[list[int]] = []  # the episodes that the training stage holds out

    def noted(*arguments: Any) -> list[int]:
        drawn.append(held_out_so_far(*arguments))
        return drawn[-1]

    monkeypatch.setattr(train_mdnrnn, "held_out_so_far", noted)
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(train_mdnrnn, "BlockStream", lambda *a, **k: 1 / 0)
        list(train_mdnrnn.train(config, store))
    assert len(drawn[0]) == 2
    assert dream.episode == max(drawn[0], key=lambda episode: random_returns[episode])

    record = read_records(store, "latents")[shard_name(dream.episode // PER_SHARD)]
    latents = next(episode for episode in read_latents(store, record) if episode.id == dream.episode)
    assert dream.warm_up_steps == len(latents) // 3
    assert dream.warm_up_steps + dream.dream_steps == len(latents) == dream.shown_steps[-1] + 1
    assert len(dream.latent_errors) == dream.dream_steps and min(dream.latent_errors) > 0
    with torch.inference_mode():
        decoded = output_to_frames(weights.new_vae(config.agent).eval().decode(torch.from_numpy(latents.mu)))
    for step, picture in zip(dream.shown_steps, dream.decoded, strict=True):
        far = int(np.abs(np.asarray(Image.open(io.BytesIO(picture)), np.int64) - decoded[step]).max())
        assert (far <= 1) == (step < dream.warm_up_steps), step
    with av.open(io.BytesIO(dream.video), "r") as video:
        assert len(list(video.decode(video=0))) == len(latents)
    assert numbers["dream"]["latent_errors"] == dream.latent_errors


def test_report_has_no_dream_if_no_episode_has_two_steps(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config()
    put_data(local_store, config, [1] * 6)
    put_metrics(local_store)
    put_evaluation(local_store, 6, RETURNS)
    report.run(config, local_store, executor)
    assert json.loads(local_store.read("report/report.json"))["dream"] is None
    assert "No collected episode has two steps" in read_page(local_store)


def test_unfinished_or_damaged_run_is_refused(local_store: LocalStore, executor: InProcessExecutor) -> None:
    config = make_config()
    put_data(local_store, config)
    with pytest.raises(StorageError, match=r"evolution/MANIFEST\.json is missing"):
        report.run(config, local_store, executor)
    put_evaluation(local_store, 6, RETURNS)
    drive = read_records(local_store, "evaluation")["drive-000006-000003.mp4"]
    local_store.write(drive.key, b"x" * drive.size_bytes)
    with pytest.raises(DamagedDataError, match=r"drive-000006-000003-.*\.mp4"):
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
