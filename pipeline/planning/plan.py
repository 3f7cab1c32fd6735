"""``world-models plan``: seconds and dollars of an evolution by number of workers, computed from measured speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.base import seeding
from pipeline.base.errors import ConfigError
from pipeline.base.formatting import rough_duration
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVOLUTION
from pipeline.evolution.state import read_progress
from pipeline.planning.rollout_time import SimulatedRollouts, WorkerSpeed, episode_lengths, simulate_rollouts
from pipeline.reporting.published import PUBLISHED
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store

WORKERS = (16, 32, 64, 128, 256, 512, 1024)

# The driver's own time. Per episode, to dispatch it and receive its result: an assumption between the 0.12 ms of an
# episode with messages of its own, as `bench fanout` simulates it, and the 0.6 to 0.8 ms of real workers whose answers
# come one by one (docs/performance.md). Per generation, on 2 cores of an AMD EPYC: CMA-ES with 867 parameters, and a
# checkpoint in a folder.
DISPATCH_MS = 0.25
OVERHEAD_MS = 200.0

_DRAWS = 8  # generations to simulate if episode lengths are random


@dataclass(frozen=True)
class Costs:
    """Inputs of a plan.

    Attributes:
        speed: Speed of a worker.
        episode_steps: Mean agent steps of a training episode; None if each runs to its limit.
        dispatch_s: Driver's seconds per episode.
        overhead_s: Driver's seconds per generation, while the workers wait.
    """

    speed: WorkerSpeed
    episode_steps: float | None
    dispatch_s: float
    overhead_s: float


@dataclass(frozen=True)
class EvolutionEstimate:
    """Estimate of an evolution on a number of workers.

    Attributes:
        config: Config of the run.
        costs: Inputs of the estimate.
        workers: Number of workers, one vCPU each.
    """

    config: RunConfig
    costs: Costs
    workers: int

    def seconds_until(self, generation: int) -> float:
        """Seconds of all generations up to this one, including validation."""
        return self._sum("seconds", generation) + generation * self.costs.overhead_s

    @property
    def seconds(self) -> float:
        """Mean seconds per generation."""
        return self.seconds_until(self._generations) / self._generations

    @property
    def busy(self) -> float:
        """Share of the workers' time that they are running episodes."""
        return self._sum("busy_s", self._generations) / self._worker_seconds

    @property
    def efficiency(self) -> float:
        """Agent-steps/s, as a share of the workers' rate with all lanes always active."""
        return self._sum("steps", self._generations) / self.costs.speed.all_lanes / self._worker_seconds

    @property
    def _generations(self) -> int:
        return self.config.evolve.generations

    @property
    def _worker_seconds(self) -> float:
        return self.workers * self.seconds_until(self._generations)

    def _sum(self, name: str, generation: int) -> float:
        """Sum of an attribute of ``SimulatedRollouts`` over all generations up to this one."""
        evolve = self.config.evolve
        training = sum(getattr(self._training[evolve.episodes_at(number)], name) for number in range(1, generation + 1))
        validations = generation // evolve.validate_every
        return float(training + validations * getattr(self._validation, name))

    @cached_property
    def _training(self) -> Mapping[int, SimulatedRollouts]:
        """A generation's training episodes, by episodes per candidate."""
        evolve = self.config.evolve
        counts = {evolve.episodes, *(change.episodes for change in evolve.episodes_from)}
        return {count: self._mean_rollouts(count * evolve.population_size) for count in counts}

    @cached_property
    def _validation(self) -> SimulatedRollouts:
        """A validation. Its episodes are whole, even if training episodes are cut."""
        env = self.config.env
        lengths = [env.actions_in(env.max_episode_steps)] * self.config.evolve.validation_episodes
        return self._simulate(lengths)

    def _mean_rollouts(self, episodes: int) -> SimulatedRollouts:
        limit, mean = step_limit(self.config), self.costs.episode_steps
        if mean is None:
            return self._simulate([limit] * episodes)
        rng = seeding.generator(self.config.seed, "plan")
        draws = [self._simulate(episode_lengths(rng, episodes, limit, mean)) for _ in range(_DRAWS)]
        names = SimulatedRollouts.__annotations__
        return SimulatedRollouts(*(float(np.mean([getattr(draw, name) for draw in draws])) for name in names))

    def _simulate(self, lengths: Sequence[int]) -> SimulatedRollouts:
        return simulate_rollouts(lengths, self.workers, self.costs.speed, self.costs.dispatch_s)


def step_limit(config: RunConfig) -> int:
    """Maximum agent steps of a training episode."""
    return config.env.actions_in(config.evolve.episode_steps or config.env.max_episode_steps)


def measured_episode_steps(store: Store, config: RunConfig) -> float:
    """Mean length of the training episodes of a run, over all its generations so far.

    Args:
        store: Store of the run.
        config: Config of the evolution to plan.

    Returns:
        Mean length in agent steps.

    Raises:
        ConfigError: The run's episodes end by other rules than those of ``config``, or no generation shows their
            length.
        StorageError: There is no run.
    """
    run = saved_config(store)
    rules, wanted = _endings(run), _endings(config)
    if rules != wanted:
        differing = ", ".join(f"{key} {rules[key]} and not {wanted[key]}" for key in rules if rules[key] != wanted[key])
        raise ConfigError(
            f"episode lengths of {store.locate()} do not apply to this config: it has {differing}. "
            "Expected a run whose episodes end by the same rules. Set them with -o, or omit --run-dir."
        )
    latest = Checkpoints(store, EVOLUTION).latest()
    history = read_progress(latest[1])["history"] if latest is not None else []
    # A generation's steps include those of its validation, so use only generations without one.
    steps = episodes = before = 0
    for row in history:
        if row.generation % run.evolve.validate_every != 0:
            steps += row.env_steps - before
            episodes += run.evolve.population_size * run.evolve.episodes_at(row.generation)
        before = row.env_steps
    if episodes == 0:
        raise ConfigError(
            f"{store.locate()} does not show the length of training episodes: expected at least one generation "
            f"without validation (evolve.validate_every is {run.evolve.validate_every}, generations so far: "
            f"{len(history)})"
        )
    return steps / run.env.action_repeat / episodes


def _endings(config: RunConfig) -> dict[str, Any]:
    """Keys that decide the length of a training episode, apart from its controller."""
    return {
        "env.id": config.env.id,
        "env.max_episode_steps": config.env.max_episode_steps,
        "env.action_repeat": config.env.action_repeat,
        "evolve.episode_steps": config.evolve.episode_steps,
        "evolve.stall_steps": config.evolve.stall_steps,
    }


def goals(config: RunConfig) -> list[tuple[float | None, int]]:
    """Milestones to estimate: (published score, its generation), or only the config's last generation.

    Published generations apply only to the same population size and number of episodes.
    """
    evolve, published = config.evolve, PUBLISHED.get(config.env.id)
    if published is not None and published.scale is not None and not (evolve.episodes_from or evolve.replayed_tracks):
        scale = published.scale
        if (evolve.population_size, evolve.episodes) == (scale.population_size, scale.candidate_episodes):
            return [(mean, generation) for generation, mean in published.curve]
    return [(None, evolve.generations)]


def describe(estimates: Sequence[EvolutionEstimate], price: float | None, speed_from: str) -> list[str]:
    """Write the plan in Markdown.

    Args:
        estimates: Estimates of one evolution, by number of workers.
        price: Dollars per vCPU-hour; None omits costs.
        speed_from: Source of the workers' speed, in words.

    Returns:
        Lines.
    """
    config, costs = estimates[0].config, estimates[0].costs
    evolve = config.evolve
    return [
        f"{config.name}: {evolve.generations:,} generations of {evolve.population_size} candidates, "
        f"{evolve.episodes} episodes each",
        "",
        *table(estimates, price),
        "",
        "Assumptions:",
        *(f"- {line}" for line in assumptions(config, costs, price, speed_from)),
    ]


def table(estimates: Sequence[EvolutionEstimate], price: float | None) -> list[str]:
    """Write the plan's table, one row per estimate; arguments as in ``describe``."""
    marks = goals(estimates[0].config)
    heads = ["workers", "s/generation", *(["$/generation"] if price is not None else []), "busy", "of full speed"]
    heads += [f"{'all' if score is None else f'{score:g} after'} {generation:,}" for score, generation in marks]
    lines = [f"| {' | '.join(heads)} |", "|" + "--:|" * len(heads)]
    for row in estimates:
        cells = [f"{row.workers:,}", f"{row.seconds:.1f}"]
        cells += [f"{dollars(row.workers, row.seconds, price):.3f}"] if price is not None else []
        cells += [f"{row.busy:.0%}", f"{row.efficiency:.0%}"]
        for _, generation in marks:
            seconds = row.seconds_until(generation)
            cost = f", ${dollars(row.workers, seconds, price):,.2f}" if price is not None else ""
            cells.append(rough_duration(seconds) + cost)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def dollars(workers: int, seconds: float, price: float) -> float:
    """Cost of workers, one vCPU each, for a time in seconds, at a price in dollars per vCPU-hour."""
    return workers * seconds * price / 3600


def requested_workers(config: RunConfig) -> int:
    """Number of workers that the last generation asks for, with a micro-batch of episodes for each."""
    evolve = config.evolve
    section = config.dream if evolve.dreams_at(evolve.generations) else config.rollouts
    return -(-evolve.episodes_at(evolve.generations) * evolve.population_size // section.micro_batch)


def assumptions(config: RunConfig, costs: Costs, price: float | None, speed_from: str) -> list[str]:
    """List the assumptions of the table, one line each.

    Args:
        config: Config of the planned run.
        costs: Speed of a worker and times of the driver.
        price: Price of a vCPU-hour in USD; None if unknown.
        speed_from: Source of the speed, in words.
    """
    evolve, speed = config.evolve, costs.speed
    lengths = f"every training episode lasts its limit of {step_limit(config):,} steps, which is an upper bound"
    if costs.episode_steps is not None:
        lengths = (
            f"training episodes last {costs.episode_steps:,.0f} steps on average, as in the given run, and end at each "
            f"step with the same probability, at {step_limit(config):,} at the latest (mean of {_DRAWS} draws)"
        )
    lines = [
        "computed, not measured: no row of the table was run",
        '"busy" is the share of the workers\' time that they run episodes; "of full speed" is their agent-steps/s as a '
        "share of their rate with all lanes always active",
        f"speed of a worker: {speed.all_lanes:,.0f} agent-steps/s with its {speed.lanes} lanes active, "
        f"{1 / speed.step_s(1):,.0f} with one ({speed_from}); in between, a step takes {speed.batch_s * 1e3:.2f} ms "
        f"per micro-batch of {speed.micro_batch} and {speed.lane_s * 1e3:.2f} ms per lane",
        "a worker is a vCPU; all vCPUs are busy, and as fast as the measured one: if two vCPUs are "
        "hyperthreads of a core, measure on such a machine",
        lengths,
        f"validation every {evolve.validate_every} generations: {evolve.validation_episodes} episodes of "
        f"{config.env.actions_in(config.env.max_episode_steps):,} steps, while no other episodes run",
        "episodes are dispatched by the pool's own scheduler, in virtual time; messages take no time",
        f"the driver takes {costs.dispatch_s * 1e3:g} ms per episode, one after the other, and "
        f"{costs.overhead_s * 1e3:g} ms per generation while workers wait",
        "an evolution requests one worker per micro-batch of a generation's episodes, "
        f"{requested_workers(config):,} here; to have more (or fewer), -o execution.workers=N",
        "workers have normal priority: nodes are started with RAY_worker_niceness=0, as by cluster/*.yaml; at Ray's "
        "default, nice 15, one busy program on a node takes nearly all of a core from them",
        "workers are up from start to end and none is lost; stages before and after the evolution, the driver's "
        "machine, GPUs and storage are not included",
    ]
    if price is not None:
        lines.append(f"${price:g} per vCPU-hour, for idle workers too")
    published = PUBLISHED.get(config.env.id)
    scale = published.scale if published is not None else None
    if published is not None and scale is None:
        lines.append("no scores: those published for this environment are not by generation")
    elif published is None or scale is None or goals(config)[0][0] is None:
        lines.append("no scores: none is published for this environment with this number of candidates and episodes")
    else:
        lines.append(
            f"scores are those of the paper's CMA mean over {published.curve_episodes:,} episodes, at the same "
            f"generations; another evolution may not reach them. The paper's {scale.generations:,} generations took "
            f"{scale.hours:,} hours on {scale.cores} cores"
        )
    return lines


def to_json(estimates: Sequence[EvolutionEstimate], price: float | None, speed_from: str) -> dict[str, Any]:
    """Convert the plan to JSON values; arguments as in ``describe``."""
    config, costs = estimates[0].config, estimates[0].costs

    def spent(workers: int, seconds: float) -> dict[str, float | None]:
        return {"seconds": seconds, "dollars": None if price is None else dollars(workers, seconds, price)}

    return {
        "config": config.name,
        "price": price,
        "steps_per_s": {"all_lanes": costs.speed.all_lanes, "one_lane": 1 / costs.speed.step_s(1), "from": speed_from},
        "episode_steps": costs.episode_steps or step_limit(config),
        "dispatch_ms": costs.dispatch_s * 1e3,
        "overhead_ms": costs.overhead_s * 1e3,
        "rows": [
            {
                "workers": row.workers,
                "generation": spent(row.workers, row.seconds),
                "busy": row.busy,
                "of_full_speed": row.efficiency,
                "until": [
                    {"generation": number, "published": score, **spent(row.workers, row.seconds_until(number))}
                    for score, number in goals(config)
                ],
            }
            for row in estimates
        ],
        "assumptions": assumptions(config, costs, price, speed_from),
    }
