"""Comparisons: the coverage of intervals, arms from configs, and the written files."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.statistics import estimate, estimate_difference
from pipeline.cli.main import main
from pipeline.cli.run import run_config
from pipeline.comparison.arms import Arm, RunResult, group, read_result
from pipeline.comparison.figures import band
from pipeline.comparison.page import make_page
from pipeline.comparison.scores import compare, table, to_csv, to_json, verdict
from pipeline.evolution.state import Generation
from pipeline.reporting.published import PUBLISHED
from pipeline.storage.local import LocalStore
from tests.counting import counting_config

STUDIES = 120


def returns_of(
    rng: np.random.Generator, seeds: int, tracks: int, seed_sd: float, track_sd: float, noise_sd: float
) -> NDArray[np.float64]:
    """Returns of an arm with mean 0: a row per seed, with random effects of the seed and of the track."""
    return (
        rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, track_sd, (1, tracks))
        + rng.normal(0, noise_sd, (seeds, tracks))
    )  # fmt: skip


def test_the_table_of_the_ablation_in_the_documents_is_that_of_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert main(["compare", str(docs / "ablation"), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [
        line for line in shown if line.startswith(("| arm ", "| full ", "| untrained ", "| z-only ", "| z-hidden "))
    ]
    assert len(rows) > 2
    assert "\n".join([rows[0], "|---|" + 9 * "--:|", *rows[1:]]) in (docs / "results.md").read_text()


def share_of_studies(low: float, studies: int = STUDIES) -> float:
    """Lower bound of a share over some studies, three standard errors below the true one."""
    return low - 3 * math.sqrt(low * (1 - low) / studies)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "track_sd", "noise_sd"),
    [(3, 30, 20, 60), (3, 10, 30, 80), (3, 0, 30, 80), (2, 20, 20, 20), (5, 15, 10, 40), (1, 0, 50, 0)],
)
def test_equal_arms_are_found_equal_in_95_of_100_studies(
    seeds: int, seed_sd: float, track_sd: float, noise_sd: float
) -> None:
    rng = np.random.default_rng(1)
    paired = unpaired = 0
    for study in range(STUDIES):
        first, second = (returns_of(rng, seeds, 30, seed_sd, track_sd, noise_sd) for _ in range(2))
        both = [estimate(first - second, study), estimate_difference(first, second, study)]
        paired, unpaired = (count + (e.low <= 0 <= e.high) for count, e in zip((paired, unpaired), both, strict=True))
    assert paired / STUDIES >= share_of_studies(0.95)
    assert unpaired / STUDIES >= share_of_studies(0.95)
    if seeds == 3 and seed_sd > track_sd:  # and not more, if seeds differ by much more than tracks
        assert paired < STUDIES


def t_test_power(difference: float, sd: float, seeds: int) -> float:
    """Power of the paired t-test of the seeds' means at 5 %, by simulation of its own definition."""
    rng = np.random.default_rng(2)
    quantile = float(np.quantile(np.abs(rng.standard_t(seeds - 1, 400_000)), 0.95))
    means = rng.normal(difference, sd, (200_000, seeds))
    t = means.mean(axis=1) / (means.std(axis=1, ddof=1) / math.sqrt(seeds))
    return float(np.mean(t > quantile))


@pytest.mark.parametrize(("seeds", "difference"), [(3, 60.0), (3, 120.0), (5, 40.0)])
def test_arms_that_differ_are_found_at_the_power_of_the_t_test(seeds: int, difference: float) -> None:
    """With seeds that differ by much more than the noise of the tracks, as in practice."""
    rng = np.random.default_rng(3)
    found = 0
    for study in range(STUDIES):
        differences = difference + returns_of(rng, seeds, 100, 30.0, 5.0, 20.0)
        found += estimate(differences, study).low > 0
    power = t_test_power(difference, math.hypot(30.0, 20.0 / 10), seeds)
    assert abs(found / STUDIES - power) < 3 * math.sqrt(power * (1 - power) / STUDIES) + 0.03


def test_probability_of_a_higher_score_matches_the_samples() -> None:
    same = np.zeros((3, 10))
    assert estimate(same, 1).above_zero == 0.5
    assert estimate(same + 5 + np.arange(3)[:, None] * 0.01, 1).above_zero > 0.99
    rng = np.random.default_rng(4)
    values = rng.normal(1.0, 10.0, (1, 100))
    expected = 0.5 * math.erfc(-values.mean() / (values.std() / 10) / math.sqrt(2))
    assert estimate(values, 1).above_zero == pytest.approx(expected, abs=0.02)


def result(name: str, seed: int, returns: list[float], **keys: Any) -> RunResult:
    values = {"seed": seed, "name": name, **keys}
    history = [
        Generation(g, 100 * g * seed, 60.0 * g, 0, 0, 0, 0, 0.1, 10.0 * g + seed if g % 2 == 0 else None, 1.0, 0.0)
        for g in range(1, 7)
    ]
    config = counting_config(values)
    return RunResult(f"/runs/{name}-{seed}", config, "best", np.array(returns), history, 1000 * seed, 60.0)


def test_runs_that_differ_only_in_their_seed_are_one_arm() -> None:
    results = [
        result("a", 2, [1.0, 2.0]), result("b", 1, [5.0, 6.0], **{"mdnrnn.init": "random"}), result("a", 1, [3.0, 4.0]),
    ]  # fmt: skip
    arms = group([replace(r, config=r.config.model_copy(update={"name": "same"})) for r in results])
    assert [arm.name for arm in arms] == ["mdnrnn.init=trained", "mdnrnn.init=random"]
    assert [arm.seeds for arm in arms] == [[1, 2], [1]]
    np.testing.assert_array_equal(arms[0].returns(1), [[3.0], [1.0]])


def test_arms_ignore_names_and_many_differing_keys_use_the_run_name() -> None:
    arms = group([result("a", 1, [1.0]), result("b", 2, [1.0])])
    assert [arm.seeds for arm in arms] == [[1, 2]]
    many = {"evolve.sigma": 0.3, "evolve.population_size": 6, "mdnrnn.epochs": 1, "vae.epochs": 7}
    arms = group([result("a", 1, [1.0]), result("b", 1, [1.0], **many)])
    assert [arm.name for arm in arms] == ["a", "b"]


def test_arms_of_external_agents_are_named_by_the_agent_if_that_is_unique() -> None:
    theirs = result("a", 1, [1.0], **{"evaluate.agent": "mine:Ppo"})
    assert [arm.name for arm in group([result("a", 1, [1.0]), theirs])] == ["a", "mine:Ppo"]
    other = result("b", 1, [1.0], **{"evaluate.agent": "mine:Ppo", "vae.z_size": 6})
    assert [arm.name for arm in group([theirs, other])] == ["vae.z_size=5", "vae.z_size=6"]
    arms = group([result("a", 1, [1.0]), theirs, other])
    assert [arm.name for arm in arms] == ["/runs/a-1", "/runs/a-1", "/runs/b-1"]


def test_a_difference_that_is_shown_as_zero_has_no_sign() -> None:
    found = compare(group([result("a", 1, [1.0, 2.0]), result("b", 1, [0.99, 1.99], **{"vae.epochs": 7})]), 500)
    text = "\n".join(table(found))
    assert "the same for all:" in text  # without published scores
    assert "| 0.0 | 0.0 to 0.0 | – |" in text and "One seed cannot tell" in text
    assert "| 0.0 | 0.0 to 0.0 |" in text and "-0.0" not in text and "+0.0" not in text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"env.id": "CartPole-v1"}, "env.id is 'tests.counting:CountingEnv' and 'CartPole-v1'"),
        ({"tracks.test.start": 50_000}, "tracks.test.start"),
        ({}, "same config and the same seed"),
    ],
)  # fmt: skip
def test_incomparable_runs_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        group([result("a", 1, [1.0]), result("b", 1, [1.0], **keys)])


def test_scores_match_the_returns() -> None:
    rng = np.random.default_rng(5)
    values = {("a", s): rng.normal(800, 80, 100) for s in (1, 2, 3)} | {
        ("b", s): rng.normal(600, 80, 90) for s in (1, 2)
    }
    arms = [
        Arm(name, [result(name, s, list(values[name, s])) for (n, s) in values if n == name]) for name in ("a", "b")
    ]
    found = compare(arms, 500.0)
    assert found.tracks == 90, "tracks that all runs have"
    first, second = found.scores
    a = np.stack([values["a", s][:90] for s in (1, 2, 3)])
    b = np.stack([values["b", s] for s in (1, 2)])
    assert first.score.mean == pytest.approx(a.mean())
    assert first.worst == a.min()
    assert first.tenth == pytest.approx(np.percentile(a, 10))
    assert second.below == pytest.approx((b < 500).mean())
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(b.mean() - a.mean())
    assert second.difference.high < 0
    assert "scores less than a" in verdict(second, "a")
    text = "\n".join(table(found))
    assert f"| a | 3 | {a.mean():,.1f} ± {a.std(ddof=1):,.1f} |" in text
    page = make_page(found, "Test").decode()
    assert (
        "comparison of 2 arms" in page and "comparison of 1 arm<" in make_page(compare(arms[:1], 500), "Test").decode()
    )
    published = replace(found, published=PUBLISHED["CarRacing-v3"].scores)
    assert "the same for all arms; published scores may be on others:" in table(published)[0]
    assert page.count("<svg") == 5 and "scores less than a" in page


def test_other_programs_can_read_the_files() -> None:
    arms = group(
        [result("a", s, [1.0 * s, 2.0]) for s in (1, 2)] + [result("b", 1, [3.0, 4.0], **{"evolve.sigma": 0.3})]
    )
    found = compare(arms, 2.5)
    rows = pd.read_csv(io.StringIO(to_csv(found)))
    assert len(rows) == 6
    means = rows.groupby("arm").episode_return.mean()
    assert means.to_dict() == {score.name: pytest.approx(score.score.mean) for score in found.scores}
    assert set(rows.track) == {found.first_track, found.first_track + 1}
    values = json.loads(json.dumps(to_json(found)))
    assert [arm["name"] for arm in values["arms"]] == [score.name for score in found.scores]
    assert values["arms"][0]["runs"][1]["returns"] == [2.0, 2.0]


def test_curves_are_interpolated_where_all_seeds_have_points() -> None:
    runs = [result("a", s, [1.0]) for s in (1, 2)]
    found = band(runs, "env_steps")
    assert found is not None
    at, values = found
    # Validations: seed 1 at 200, 400, 600 steps, seed 2 at 400, 800, 1200.
    assert (at[0], at[-1]) == (400.0, 600.0)
    np.testing.assert_allclose(values[:, 0], [41.0, 22.0])
    np.testing.assert_allclose(values[:, -1], [61.0, 32.0])
    assert band([replace(runs[0], history=[])], "env_steps") is None


def test_command_compares_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first"
    whole = counting_config({"execution.executor": "in-process"})
    run_config(whole, str(first), "run")
    random = counting_config({"execution.executor": "in-process", "evolve.sigma": 0.3})
    run_config(random, str(tmp_path / "second"), "run", [str(first)])
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["compare", str(first), str(tmp_path / "second"), "--out", str(out), "--json", "--below", "-5"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    values = json.loads(printed[-1])
    for arm, run in zip(values["arms"], ("first", "second"), strict=True):
        assert arm["runs"][0]["returns"] == read_result(LocalStore(tmp_path / run)).returns.tolist()
    assert f"page: {out / 'index.html'}" in printed
    assert {path.name for path in out.iterdir()} == {"index.html", "comparison.json", "episodes.csv"}
    shutil.rmtree(tmp_path / "second" / "evaluation")
    assert main(["compare", str(first), str(tmp_path / "second")]) == StorageError.exit_code
    assert "is not evaluated" in capsys.readouterr().err
