"""CMA-ES with ask and tell: it finds maxima, is reproducible, and resumes from its state."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from cma.utilities import utils
from numpy.typing import NDArray

from pipeline.base.errors import DamagedDataError
from pipeline.config.evolution import EvolveConfig
from pipeline.evolution.replay import PlayedTrack
from pipeline.evolution.search import Search
from pipeline.evolution.state import EvolutionState, Generation, read_progress

Array = NDArray[np.float64]
Objective = Callable[[Array], Array]

pytestmark = pytest.mark.usefixtures("one_thread")

N = 6
OPTIMUM = np.array([1.0, -2.0, 0.5, 3.0, -0.7, 2.2])


def sphere(x: Array) -> Array:
    """A cost to minimize: squared distance from the optimum, for each row."""
    distances: Array = ((x - OPTIMUM) ** 2).sum(-1)
    return distances


def rotated_ellipsoid(x: Array) -> Array:
    """A cost to minimize: axes of length 1 to 1,000 (condition 10^6), none along a coordinate."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))
    values: Array = (((x - OPTIMUM) @ rotation) ** 2 * 10.0 ** np.linspace(0, 6, N)).sum(-1)
    return values


def new_search(seed: int = 1, *, n: int = N, sigma: float = 0.5, population_size: int = 10) -> Search:
    return Search(np.zeros(n), sigma=sigma, population_size=population_size, seed=seed)


def evolve(search: Search, cost: Objective, generations: int) -> list[Array]:
    asked = []
    for _ in range(generations):
        candidates = search.ask()
        search.tell(candidates, (-cost(candidates)).tolist())
        asked.append(candidates)
    return asked


# ---- optimisation


def test_smallest_allowed_population_learns_with_many_parameters() -> None:
    """With a population of two, pycma fails in the second generation if there are many parameters."""
    (least,) = [bound.ge for bound in EvolveConfig.model_fields["population_size"].metadata if hasattr(bound, "ge")]
    search = new_search(n=867, population_size=least)
    for _ in range(6):
        evolve(search, lambda x: (x**2).sum(-1), 1)
        search = Search.from_bytes(search.to_bytes())
    assert np.isfinite(search.mean).all() and search.mean.any()


@pytest.mark.parametrize(("cost", "generations"), [(sphere, 120), (rotated_ellipsoid, 400)])
def test_search_finds_the_optimum(cost: Objective, generations: int) -> None:
    search = new_search()
    assert cost(search.mean) > 1
    evolve(search, cost, generations)
    np.testing.assert_allclose(search.mean, OPTIMUM, atol=1e-5)
    assert search.sigma < 1e-3


def test_higher_fitness_is_better() -> None:
    up, down = new_search(), new_search()
    for search, sign in ((up, 1.0), (down, -1.0)):
        for _ in range(20):
            candidates = search.ask()
            search.tell(candidates, (sign * candidates[:, 2]).tolist())
    assert up.mean[2] > 1
    assert down.mean[2] < -1


def test_search_starts_at_zero_with_the_given_step_size() -> None:
    search = new_search(n=100, sigma=0.3, population_size=64)
    assert not search.mean.any()
    assert search.sigma == 0.3
    np.testing.assert_allclose(search.covariance, np.eye(100), atol=2e-4)  # pycma breaks the tie of equal axes
    candidates = search.ask()
    assert candidates.shape == (64, 100)
    assert candidates.dtype == np.float64
    assert candidates.std() == pytest.approx(0.3, rel=0.05)  # 6,400 numbers: four standard errors
    assert candidates.mean() == pytest.approx(0, abs=0.015)


def test_candidates_follow_the_reported_mean_sigma_and_covariance() -> None:
    search = new_search(population_size=20)
    evolve(search, rotated_ellipsoid, 60)
    clone = Search.from_bytes(search.to_bytes())
    samples = np.concatenate([clone.ask() for _ in range(500)])
    # Whitened with the reported values, they are standard normal.
    root = np.linalg.cholesky(search.covariance) * search.sigma
    white = np.linalg.solve(root, (samples - search.mean).T).T
    np.testing.assert_allclose(white.mean(0), 0, atol=0.05)  # five standard errors of 10,000
    np.testing.assert_allclose(np.cov(white.T), np.eye(N), atol=0.08)
    correlation = search.covariance / np.sqrt(np.outer(*[np.diag(search.covariance)] * 2))
    assert np.abs(correlation - np.eye(N)).max() > 0.3, "the covariance has been adapted"


def test_search_never_reports_convergence() -> None:
    """Fitness is noisy and may be flat: only the config limits a run."""
    search = new_search(n=3)
    for _ in range(300):
        candidates = search.ask()
        search.tell(candidates, [1.0] * len(candidates))
    assert np.isfinite(search.mean).all()
    assert search.ask().shape == (10, 3)
    assert not search._es.stop()


# ---- determinism


def test_bits_depend_only_on_the_seed() -> None:
    want = evolve(new_search(), sphere, 15)
    np.random.seed(77)  # noqa: NPY002
    disturbed = new_search()
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(77)  # noqa: NPY002
    assert np.random.random() == drawn, "beginning seeded numpy's global stream"  # noqa: NPY002
    got = []
    for generation in range(15):
        np.random.seed(generation)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
        got += evolve(disturbed, sphere, 1)
        after = np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002
        np.testing.assert_array_equal(before, after, err_msg="numpy's global stream was drawn from or seeded")
    assert [a.tobytes() for a in got] == [b.tobytes() for b in want]


def test_another_seed_gives_other_candidates() -> None:
    assert not np.array_equal(new_search(1).ask(), new_search(2).ask())


@pytest.mark.parametrize("at", [0, 1, 7])
def test_saved_search_resumes_to_the_bit(at: int) -> None:
    reference = new_search()
    want = evolve(reference, rotated_ellipsoid, 20)
    search = new_search()
    got = evolve(search, rotated_ellipsoid, at)
    data = search.to_bytes()
    evolve(search, sphere, 3)  # the first search does not affect the second
    np.random.seed(99)  # noqa: NPY002
    resumed = Search.from_bytes(data)
    got += evolve(resumed, rotated_ellipsoid, 20 - at)
    assert [a.tobytes() for a in got] == [b.tobytes() for b in want]
    assert resumed.mean.tobytes() == reference.mean.tobytes()
    assert resumed.covariance.tobytes() == reference.covariance.tobytes()
    assert resumed.sigma == reference.sigma


def test_a_restored_search_is_as_silent_as_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    search = new_search(n=867, population_size=4)
    candidates = search.ask()
    search.tell(candidates, (-(candidates**2).sum(1)).tolist())
    monkeypatch.setattr(utils, "global_verbosity", 1)  # as in a process that has made no search
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Search.from_bytes(search.to_bytes()).ask()  # of 4 samples, pycma injects 3


def test_reported_arrays_are_copies() -> None:
    search = new_search()
    search.mean[:] = 7
    search.covariance[:] = 7
    assert not search.mean.any()
    assert search.covariance[0, 1] == 0


# ---- tell


@pytest.mark.parametrize(
    "fitness",
    [
        [1.0] * 9,
        [1.0] * 11,
        [],
        [[1.0]] * 10,
        [*[1.0] * 9, float("nan")],
        [float("inf"), *[1.0] * 9],
        [*[1.0] * 9, float("-inf")],
    ],
    ids=["one-missing", "one-too-many", "none", "nested", "nan", "inf", "minus-inf"],
)
def test_tell_refuses_invalid_fitness_and_keeps_its_state(fitness: list[float]) -> None:
    search, untouched = new_search(), new_search()
    candidates = search.ask()
    with pytest.raises(ValueError, match=r"expected 10 fitness values|must be finite"):
        search.tell(candidates, fitness)
    good = (-sphere(candidates)).tolist()
    search.tell(candidates, good)
    untouched.tell(untouched.ask(), good)
    assert search.mean.tobytes() == untouched.mean.tobytes()


def test_tell_refuses_a_part_of_the_population() -> None:
    search = new_search()
    candidates = search.ask()
    with pytest.raises(ValueError, match="expected 10 fitness values"):
        search.tell(candidates[:5], [1.0] * 5)


def test_fitness_belongs_to_its_candidate() -> None:
    """The order of the pairs does not matter, but a wrong assignment does."""
    searches = [new_search() for _ in range(3)]
    for search, order in zip(searches, ("kept", "both", "mixed"), strict=True):
        candidates = search.ask()
        fitness = -sphere(candidates)
        if order == "both":
            search.tell(candidates[::-1], fitness[::-1].tolist())
        else:
            search.tell(candidates, (fitness[::-1] if order == "mixed" else fitness).tolist())
    np.testing.assert_allclose(searches[0].mean, searches[1].mean, rtol=1e-12)
    assert np.abs(searches[0].mean - searches[2].mean).max() > 1e-3


# ---- state


def row(generation: int, **changes: object) -> Generation:
    values = {
        "generation": generation, "env_steps": 100 * generation, "seconds": 1.25 * generation, "fitness_min": -1.5,
        "fitness_mean": 0.1, "fitness_max": 2.5, "fitness_sd": 0.3, "sigma": 0.1 / 3, "validation_mean": None,
        "validation_sd": None, "time": 1.7e9,
    }  # fmt: skip
    return Generation(**{**values, **changes})  # type: ignore[arg-type]


def make_state() -> EvolutionState:
    search = new_search()
    state = EvolutionState(search, [row(1), row(2, validation_mean=0.1 + 0.2, validation_sd=1e-17)])
    for _ in range(5):
        evolve(search, rotated_ellipsoid, 1)
        state.remember_mean(3)
    state.best, state.best_generation, state.best_validation = search.mean / 3, 2, 0.1 + 0.2
    state.env_steps, state.seconds = 200, 2.5
    state.played = [PlayedTrack(3, 1, 0.1 + 0.2), PlayedTrack(5, 2, -1e-17)]
    return state


def test_saved_state_is_complete_and_its_search_resumes_to_the_bit() -> None:
    state = make_state()
    back = EvolutionState.from_bytes(state.to_bytes())
    assert back.history == state.history
    assert (back.generation, back.best_generation, back.best_validation) == (2, 2, 0.1 + 0.2)
    assert (back.env_steps, back.seconds) == (200, 2.5)
    assert back.played == state.played
    assert state.best is not None
    assert back.best is not None
    assert back.best.tobytes() == state.best.tobytes()
    assert back.average_mean.tobytes() == state.average_mean.tobytes()
    for one in (state, back):
        one.remember_mean(3)
    assert len(back.means) == 3 and back.average_mean.tobytes() == state.average_mean.tobytes()
    want, got = evolve(state.search, sphere, 3), evolve(back.search, sphere, 3)
    assert [a.tobytes() for a in got] == [b.tobytes() for b in want]


def test_state_before_a_validation_has_no_best() -> None:
    back = EvolutionState.from_bytes(EvolutionState(new_search()).to_bytes())
    assert back.best is None
    assert back.best_generation is None
    assert back.best_validation is None
    assert back.generation == 0


def test_mean_sigma_and_c_are_readable_with_plain_numpy() -> None:
    state = make_state()
    with np.load(io.BytesIO(state.to_bytes()), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["mean"], state.search.mean)
        np.testing.assert_array_equal(arrays["C"], state.search.covariance)
        assert arrays["C"].shape == (N, N)
        assert float(arrays["sigma"]) == state.search.sigma
        np.testing.assert_array_equal(arrays["best"], state.best)
        assert json.loads(arrays["progress"].tobytes())["history"][1]["generation"] == 2


def test_progress_is_read_without_unpickling() -> None:
    state = make_state()
    with np.load(io.BytesIO(state.to_bytes())) as arrays:
        parts = dict(arrays)
    parts["pycma"] = np.frombuffer(b"no pickle", np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    progress = read_progress(buffer.getvalue())
    assert progress["history"] == state.history
    assert (progress["best_generation"], progress["env_steps"]) == (2, 200)
    with pytest.raises(DamagedDataError, match=r"cannot be restored by cma"):
        EvolutionState.from_bytes(buffer.getvalue())
