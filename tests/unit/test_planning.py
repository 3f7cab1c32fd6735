"""``world-models plan``: the simulation against bounds and hand calculations; sums; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import ConfigError, StorageError
from pipeline.bench import lanes as bench_lanes
from pipeline.cli import main as cli
from pipeline.config.presets import dump, load_config
from pipeline.config.schema import RunConfig
from pipeline.evolution.fitness import training_jobs
from pipeline.evolution.search import Search
from pipeline.evolution.state import EvolutionState, Generation
from pipeline.models import weights
from pipeline.models.controller import ControllerShape
from pipeline.planning import plan as planning
from pipeline.planning.plan import Costs, EvolutionEstimate
from pipeline.planning.rollout_time import WorkerSpeed, episode_lengths, simulate_rollouts
from pipeline.reporting.published import PUBLISHED
from pipeline.rollouts.loop import RolloutWorker
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from tests.counting import ACTION_SIZE, counting_config, episode_length

PAPER = load_config("paper", [])
SPEED = WorkerSpeed.from_rates(PAPER.rollouts, 2184.0, 900.0)
TWO_LANES = WorkerSpeed(lanes=2, micro_batch=2, all_lanes=1.0, batch_s=1.0, lane_s=0.5)

Lengths = st.lists(st.integers(1, 50), min_size=1, max_size=120)
Speeds = st.builds(
    WorkerSpeed,
    lanes=st.integers(1, 20),
    micro_batch=st.integers(1, 8),
    all_lanes=st.just(1.0),
    batch_s=st.sampled_from([0.0, 0.7, 2.0]),
    lane_s=st.sampled_from([0.1, 1.0]),
)


def small(**evolve: object) -> RunConfig:
    return counting_config({f"evolve.{key}": value for key, value in evolve.items()})


def test_speed_reproduces_its_two_measured_rates() -> None:
    assert 16 / SPEED.step_s(16) == pytest.approx(2184)
    assert 1 / SPEED.step_s(1) == pytest.approx(900)
    assert SPEED.step_s(9) - SPEED.step_s(8) == pytest.approx(SPEED.batch_s + SPEED.lane_s), "a second micro-batch"


@pytest.mark.parametrize("override", ["rollouts.lanes=1", "rollouts.micro_batch=1"])
def test_lanes_cost_the_same_if_each_is_a_micro_batch(override: str) -> None:
    speed = WorkerSpeed.from_rates(load_config("paper", [override]).rollouts, 500.0, 480.0)
    assert [n / speed.step_s(n) for n in (1, 7, 16)] == pytest.approx([500] * 3)


@pytest.mark.parametrize("rates", [(900.0, 901.0), (7300.0, 900.0)])
def test_impossible_rates_are_refused_with_the_expected_ones(rates: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=f"between {rates[1]:,.0f} and {8 * rates[1]:,.0f} were expected"):
        WorkerSpeed.from_rates(PAPER.rollouts, *rates)


def test_one_worker_matches_a_hand_calculation() -> None:
    # Steps 0 to 3 and 3 to 5 with two lanes at 2 s each, 5 to 7 with one at 1.5 s.
    simulated = simulate_rollouts([3, 5, 4], 1, TWO_LANES, dispatch_s=0.0)
    assert simulated.seconds == simulated.busy_s == 5 * 2 + 2 * 1.5


def test_simulation_takes_the_steps_of_a_real_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(population_size=7, episodes=3, common_tracks=False)
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    jobs = training_jobs(config, 1, np.zeros((7, shape.num_parameters)))
    vae, mdnrnn = weights.new_vae(config.agent), weights.new_mdnrnn(config.agent, ACTION_SIZE)
    worker = RolloutWorker(config.env, config.agent, weights.to_bytes(vae), weights.to_bytes(mdnrnn))
    act = worker.act
    active: list[int] = []

    def noted(lanes: int) -> Any:
        active.append(lanes)
        return act(lanes)

    monkeypatch.setattr(worker, "act", noted)
    assert len(list(worker.run(jobs))) == 21
    assert len(set(active)) > 1, "lanes end one after the other"
    speed = WorkerSpeed.from_rates(config.rollouts, 1000.0, 500.0)
    lengths = [episode_length(job.track, config.env.max_episode_steps) for job in jobs]
    assert simulate_rollouts(lengths, 1, speed, dispatch_s=0.0).seconds == pytest.approx(sum(map(speed.step_s, active)))


@settings(deadline=None, max_examples=200)
@given(Lengths, st.integers(1, 40), Speeds)
# The next tick is due a rounding error after an event here: the time of the simulation once stood still.
@example([49, 49, 49, 1, 2, 50, 28, 29, 2, 49, 48, 9, 17, 50, 2], 17, WorkerSpeed(20, 5, 1.0, 0.0, 0.1))
def test_simulated_rollouts_keep_the_bounds_of_schedules(lengths: list[int], workers: int, speed: WorkerSpeed) -> None:
    simulated = simulate_rollouts(lengths, workers, speed, dispatch_s=0.0)
    assert simulated.steps == sum(lengths)
    fuzz = 1 + 1e-9
    most = max(n / speed.step_s(n) for n in range(1, speed.lanes + 1))
    assert simulated.busy_s * fuzz >= sum(lengths) / most
    assert simulated.seconds * fuzz >= simulated.busy_s / workers
    assert simulated.seconds * fuzz >= max(lengths) * speed.step_s(1), "the longest episode alone"
    # The last worker to end got its last share while no worker was idle. The first share is the largest.
    first = max(speed.lanes, len(lengths) / (2 * workers)) + 1
    at_worst = max(speed.step_s(n) for n in range(1, speed.lanes + 1))
    assert simulated.seconds <= (simulated.busy_s / workers + first * max(lengths) * at_worst) * fuzz


@settings(deadline=None)
@given(Lengths, st.integers(0, 20))
def test_one_worker_per_episode_takes_the_time_of_the_longest(lengths: list[int], idle: int) -> None:
    simulated = simulate_rollouts(lengths, len(lengths) + idle, SPEED, dispatch_s=0.0)
    assert simulated.seconds == pytest.approx(max(lengths) * SPEED.step_s(1))


def test_driver_dispatches_one_episode_after_the_other() -> None:
    assert simulate_rollouts([100] * 50, 60, SPEED, 0.25).seconds == pytest.approx(50 * 0.25 + 100 * SPEED.step_s(1))


def test_more_workers_are_faster_and_more_expensive() -> None:
    costs = Costs(SPEED, None, dispatch_s=1e-3, overhead_s=0.2)
    plans = [EvolutionEstimate(PAPER, costs, workers) for workers in (1, *planning.WORKERS)]
    seconds = [plan.seconds for plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    efficiencies = [plan.efficiency for plan in plans]
    assert (max(efficiencies), min(efficiencies)) == (efficiencies[0], efficiencies[-1])
    for plan in plans:
        assert 0 < plan.efficiency <= plan.busy <= 1
        steps = 64 * 16 * 1000 + 100 * 1000 / 25
        assert plan.efficiency == pytest.approx(steps / 2184 / plan.workers / plan.seconds)


def test_evolution_is_the_sum_of_generations_validation_and_overhead() -> None:
    config = small(generations=5, validate_every=2, episodes_from=[{"generation": 3, "episodes": 5}], episode_steps=7)
    speed = WorkerSpeed.from_rates(config.rollouts, 1000.0, 500.0)
    plan = EvolutionEstimate(config, Costs(speed, None, dispatch_s=0.01, overhead_s=100.0), 3)
    few, many = (simulate_rollouts([7] * 4 * episodes, 3, speed, 0.01).seconds for episodes in (2, 5))
    validation = simulate_rollouts([16] * 3, 3, speed, 0.01).seconds
    assert [plan.seconds_until(n) for n in (1, 2, 5)] == pytest.approx(
        [few + 100, 2 * (few + 100) + validation, 2 * few + 3 * many + 2 * validation + 500]
    )
    assert plan.seconds == pytest.approx(plan.seconds_until(5) / 5)


def test_cost_covers_all_workers_for_the_whole_time() -> None:
    assert planning.dollars(workers=256, seconds=900.0, price=0.04) == pytest.approx(256 * 0.25 * 0.04)


def test_only_the_settings_of_the_paper_have_published_goals() -> None:
    curve = PUBLISHED["CarRacing-v3"].curve
    assert planning.goals(PAPER) == [(mean, generation) for generation, mean in curve]
    assert (900.5, 1800) in planning.goals(PAPER)
    assert planning.goals(load_config("laptop", [])) == [(None, 200)]
    assert planning.goals(load_config("paper", ["evolve.episodes_from=[{generation: 9, episodes: 32}]"])) == [
        (None, 1800)
    ]
    assert planning.goals(load_config("paper", ["evolve.replayed_tracks=4"])) == [(None, 1800)]
    assert planning.goals(counting_config()) == [(None, 3)]
    take_cover = load_config("takecover", ["evolve.environment=game", "evolve.select=game"])
    assert planning.goals(take_cover) == [(None, 1800)]
    costs = Costs(SPEED, None, dispatch_s=1e-3, overhead_s=0.2)
    said = planning.assumptions(take_cover, costs, None, "as given")
    assert any("no scores: those published for this environment are not by generation" in line for line in said)


@pytest.mark.parametrize("mean", [1.0, 60.0, 500.0, 820.0, 1000.0])
def test_drawn_lengths_have_the_mean_and_end_at_the_limit(mean: float) -> None:
    lengths = episode_lengths(np.random.default_rng(1), 20_000, 1000, mean)
    assert np.mean(lengths) == pytest.approx(mean, rel=0.03)
    assert min(lengths) >= 1
    assert max(lengths) <= 1000


def test_plan_with_drawn_lengths_is_reproducible() -> None:
    costs = Costs(SPEED, 700.0, dispatch_s=1e-3, overhead_s=0.2)
    first, second = (EvolutionEstimate(PAPER, costs, 64).seconds for _ in range(2))
    assert first == second < EvolutionEstimate(PAPER, Costs(SPEED, None, 1e-3, 0.2), 64).seconds


def put_run(store: LocalStore, config: RunConfig, env_steps: list[int]) -> None:
    store.write(CONFIG, dump(config).encode())
    state = EvolutionState(Search(np.zeros(3), sigma=0.1, population_size=4, seed=1))
    state.history = [
        Generation(n, steps, 1.0, 0.0, 0.0, 0.0, 0.0, 0.1, None, None, 0.0) for n, steps in enumerate(env_steps, 1)
    ]
    Checkpoints(store, "evolution").save(len(env_steps), state.to_bytes())


def test_lengths_of_training_episodes_come_from_a_run(local_store: LocalStore) -> None:
    config = small(validate_every=2, episodes_from=[{"generation": 3, "episodes": 3}])
    # 8 episodes; 8 and validation; 12 episodes.
    put_run(local_store, config, [80, 1000, 1240])
    assert planning.measured_episode_steps(local_store, config) == (80 + 240) / (8 + 12)


def test_run_without_episode_lengths_is_refused(local_store: LocalStore) -> None:
    config = small(validate_every=1)
    with pytest.raises(StorageError, match="holds no run"):
        planning.measured_episode_steps(local_store, config)
    put_run(local_store, config, [80, 160])
    with pytest.raises(ConfigError, match="validate_every is 1, generations so far: 2"):
        planning.measured_episode_steps(local_store, config)
    with pytest.raises(ConfigError, match=r"it has evolve\.stall_steps None and not 60"):
        planning.measured_episode_steps(local_store, small(stall_steps=60))


def test_command_shows_a_table_its_assumptions_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    given_rates = ["--steps-per-s", "2184", "900", "--dispatch-ms", "2", "--overhead-ms", "0"]
    assert cli.main(["plan", "paper", *given_rates, "--workers", "64", "2048", "--price", "0.04", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert [row["workers"] for row in found["rows"]] == [64, 2048]
    assert (found["price"], found["dispatch_ms"], found["overhead_ms"]) == (0.04, 2, 0)
    plan = EvolutionEstimate(PAPER, Costs(SPEED, None, 2e-3, 0.0), 64)
    last = found["rows"][0]["until"][-1]
    assert (last["generation"], last["published"]) == (1800, 900.5)
    assert last["seconds"] == pytest.approx(plan.seconds_until(1800))
    assert last["dollars"] == pytest.approx(64 * 0.04 * last["seconds"] / 3600)
    (row,) = (line for line in lines if line.startswith("| 64 |"))
    assert f"| {plan.seconds:.1f} |" in row
    assert f"${last['dollars']:,.2f} |" in row
    assert all(f"- {line}" in lines for line in found["assumptions"])
    assert any("as given" in line and "2,184" in line for line in found["assumptions"])
    assert any("generation's episodes, 128 here" in line for line in found["assumptions"])


def test_plan_without_a_price_has_no_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "laptop", "--steps-per-s", "2184", "900", "--json"]) == 0
    output = capsys.readouterr().out
    assert "$" not in output
    assert [row["workers"] for row in json.loads(output.splitlines()[-1])["rows"]] == [*planning.WORKERS]


def test_speed_is_measured_on_every_core_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.base.machine.num_cores", lambda: 6)
    monkeypatch.setattr(bench_lanes, "measure_rates", lambda config, seconds, workers: (100.0 * workers, seconds))
    assert cli.main(["plan", "paper", "--seconds", "500"]) == 0
    output = capsys.readouterr().out
    assert "600 agent-steps/s with its 16 lanes active, 500 with one (CPU time, " in output
    assert "measured now on" in output
    assert "6 workers at once)" in output


def test_workers_are_measured_in_separate_processes() -> None:
    rates = bench_lanes.measure_rates(counting_config(), seconds=0.05, workers=2)
    assert all(np.isfinite(rate) and rate > 0 for rate in rates)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--price", "0"], "--price: 0: a number above 0 was expected"),
        (["--price", "nan"], "--price: nan: a number was expected"),
        (["--workers", "0"], "--workers: 0: a whole number above 0 was expected"),
        (["--workers", "16", "many"], "--workers: many: a whole number above 0 was expected"),
        (["--steps-per-s", "2000"], "--steps-per-s: expected 2 arguments"),
        (["--dispatch-ms", "-1"], "--dispatch-ms: -1: a number of 0 or above was expected"),
    ],
)
def test_invalid_options_are_refused_with_the_expected_values(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "paper", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_run_is_refused_before_any_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_lanes, "measure_rates", lambda *_: pytest.fail("measured something first"))
    assert cli.main(["plan", "paper", "--run-dir", str(tmp_path / "none")]) == 1
    assert "holds no run" in capsys.readouterr().err
