"""``world-models plan``: seconds and dollars of an evolution on so many workers, computed from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.base import seeding
from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVOLUTION
from pipeline.evolution.state import read_progress
from pipeline.planning.preflight import duration
from pipeline.planning.simulation import Drive, WorkerSpeed, drive, episode_lengths
from pipeline.reporting.published import PUBLISHED
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.maintenance import require_run
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store

WORKERS = (16, 32, 64, 128, 256, 512, 1024)

# The driver's own time, on 2 cores of an AMD EPYC. For an episode, handing it out and taking its result: CPU time of
# its thread where simulated episodes go to 256 Ray workers, all on that machine: 0.11 ms of 4,096, 0.25 ms of 1,024. Up
# to 32 workers, where answers come one by one, 0.7 ms. For a generation: CMA-ES with 867 parameters, and a checkpoint
# in a folder.
DISPATCH_MS = 0.25
OVERHEAD_MS = 200.0

_DRAWS = 8  # generations that are simulated where lengths of episodes are drawn


@dataclass(frozen=True)
class Costs:
    """What a plan is computed from.

    Attributes:
        speed: of a worker.
        episode_steps: agent steps of a training episode, on average; None: each runs to its limit.
        dispatch_s: seconds of the driver an episode.
        overhead_s: seconds of the driver a generation, while the workers wait.
    """

    speed: WorkerSpeed
    episode_steps: float | None
    dispatch_s: float
    overhead_s: float


@dataclass(frozen=True)
class Estimate:
    """An evolution on so many workers.

    Attributes:
        config: of the run.
        costs: what it is computed from.
        workers: at work, one a vCPU.
    """

    config: RunConfig
    costs: Costs
    workers: int

    def seconds_until(self, generation: int) -> float:
        """Seconds of the generations up to this one, validation included."""
        return self._sum("seconds", generation) + generation * self.costs.overhead_s

    @property
    def seconds(self) -> float:
        """Seconds a generation, on average over the evolution."""
        return self.seconds_until(self._generations) / self._generations

    @property
    def busy(self) -> float:
        """Share of the workers' time that they drive."""
        return self._sum("busy_s", self._generations) / self._worker_seconds

    @property
    def efficiency(self) -> float:
        """Agent-steps/s, as a share of what the workers would come to with all lanes always at work."""
        return self._sum("steps", self._generations) / self.costs.speed.all_lanes / self._worker_seconds

    @property
    def _generations(self) -> int:
        return self.config.evolve.generations

    @property
    def _worker_seconds(self) -> float:
        return self.workers * self.seconds_until(self._generations)

    def _sum(self, figure: str, generation: int) -> float:
        """A figure of ``Drive`` over all generations up to this one."""
        evolve = self.config.evolve
        training = sum(getattr(self._drives[evolve.episodes_at(number)], figure) for number in range(1, generation + 1))
        validations = generation // evolve.validate_every
        return float(training + validations * getattr(self._validation, figure))

    @cached_property
    def _drives(self) -> Mapping[int, Drive]:
        """By episodes per candidate: a generation's training episodes."""
        evolve = self.config.evolve
        counts = {evolve.episodes, *(change.episodes for change in evolve.episodes_from)}
        return {count: self._mean_drive(count * evolve.population_size) for count in counts}

    @cached_property
    def _validation(self) -> Drive:
        """Its episodes are whole, whatever cuts those of training."""
        env = self.config.env
        lengths = [env.actions_in(env.max_episode_steps)] * self.config.evolve.validation_episodes
        return drive(lengths, self.workers, self.costs.speed, self.costs.dispatch_s)

    def _mean_drive(self, episodes: int) -> Drive:
        limit, mean = step_limit(self.config), self.costs.episode_steps
        if mean is None:
            return drive([limit] * episodes, self.workers, self.costs.speed, self.costs.dispatch_s)
        rng = seeding.generator(self.config.seed, "plan")
        drives = [
            drive(episode_lengths(rng, episodes, limit, mean), self.workers, self.costs.speed, self.costs.dispatch_s)
            for _ in range(_DRAWS)
        ]
        return Drive(*(float(np.mean([getattr(one, name) for one in drives])) for name in Drive.__annotations__))


def step_limit(config: RunConfig) -> int:
    """Agent steps after which a training episode ends."""
    return config.env.actions_in(config.evolve.episode_steps or config.env.max_episode_steps)


def measured_episode_steps(store: Store, config: RunConfig) -> float:
    """Mean length of the training episodes of a run, over all its generations so far.

    Args:
        store: the run's.
        config: of the evolution to plan.

    Raises:
        ConfigError: the run's episodes end by other rules than those of ``config``, or it does not tell.
        StorageError: there is no run.
    """
    require_run(store)
    run = saved_config(store)
    rules, wanted = _endings(run), _endings(config)
    if rules != wanted:
        differing = ", ".join(f"{key} {rules[key]} and not {wanted[key]}" for key in rules if rules[key] != wanted[key])
        raise ConfigError(
            f"the episodes of {store.locate()} tell nothing of this config's lengths: it has {differing}. "
            "Expected a run whose episodes end by the same rules; set them by -o, or leave --run-dir out"
        )
    latest = Checkpoints(store, EVOLUTION).latest()
    history = read_progress(latest[1])["history"] if latest is not None else []
    # Validation counts among a generation's steps: only those without it tell of training.
    steps = episodes = before = 0
    for row in history:
        if row.generation % run.evolve.validate_every != 0:
            steps += row.env_steps - before
            episodes += run.evolve.population_size * run.evolve.episodes_at(row.generation)
        before = row.env_steps
    if episodes == 0:
        raise ConfigError(
            f"{store.locate()} does not tell how long training episodes are: expected at least one generation that "
            f"validates nothing (evolve.validate_every is {run.evolve.validate_every}, generations so far: "
            f"{len(history)})"
        )
    return steps / run.env.action_repeat / episodes


def _endings(config: RunConfig) -> dict[str, Any]:
    """What decides how long a training episode is, but for who drives it."""
    return {
        "env.id": config.env.id,
        "env.max_episode_steps": config.env.max_episode_steps,
        "env.action_repeat": config.env.action_repeat,
        "evolve.episode_steps": config.evolve.episode_steps,
        "evolve.stall_steps": config.evolve.stall_steps,
    }


def goals(config: RunConfig) -> list[tuple[float | None, int]]:
    """What to reckon up to: (published score, generation that had it), or the config's last generation alone.

    Published generations mean something for a population and episodes of the same number only.
    """
    evolve, published = config.evolve, PUBLISHED.get(config.env.id)
    if published is not None and not (evolve.episodes_from or evolve.replayed_tracks):
        scale = published.scale
        if (evolve.population_size, evolve.episodes) == (scale.population_size, scale.candidate_episodes):
            return [(mean, generation) for generation, mean in published.curve]
    return [(None, evolve.generations)]


def describe(estimates: Sequence[Estimate], price: float | None, speed_from: str) -> list[str]:
    """The plan in Markdown.

    Args:
        estimates: of one evolution, by workers.
        price: dollars a vCPU-hour; None leaves dollars out.
        speed_from: where the workers' speed is from, in words.
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


def table(estimates: Sequence[Estimate], price: float | None) -> list[str]:
    """Its table, a row an estimate."""
    marks = goals(estimates[0].config)
    heads = ["workers", "s a generation", *(["$ a generation"] if price is not None else []), "busy", "of full speed"]
    heads += [f"{'all' if score is None else f'{score:g} after'} {generation:,}" for score, generation in marks]
    lines = [f"| {' | '.join(heads)} |", "|" + "--:|" * len(heads)]
    for row in estimates:
        cells = [f"{row.workers:,}", f"{row.seconds:.1f}"]
        cells += [f"{dollars(row.workers, row.seconds, price):.3f}"] if price is not None else []
        cells += [f"{row.busy:.0%}", f"{row.efficiency:.0%}"]
        for _, generation in marks:
            seconds = row.seconds_until(generation)
            cost = f", ${dollars(row.workers, seconds, price):,.2f}" if price is not None else ""
            cells.append(duration(seconds) + cost)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def dollars(workers: int, seconds: float, price: float) -> float:
    """What so many vCPUs cost for so long, at dollars a vCPU-hour."""
    return workers * seconds * price / 3600


def _asked_for(config: RunConfig) -> int:
    evolve = config.evolve
    return -(-evolve.episodes_at(evolve.generations) * evolve.population_size // config.rollouts.micro_batch)


def assumptions(config: RunConfig, costs: Costs, price: float | None, speed_from: str) -> list[str]:
    """Everything that the table takes for granted."""
    evolve, speed = config.evolve, costs.speed
    lengths = f"every training episode lasts its limit of {step_limit(config):,} steps, which is an upper bound"
    if costs.episode_steps is not None:
        lengths = (
            f"training episodes last {costs.episode_steps:,.0f} steps on average, as in the run given, and end at any "
            f"step with the same chance, at {step_limit(config):,} at the latest (mean of {_DRAWS} draws)"
        )
    lines = [
        "computed, not measured: no row of the table was run",
        "busy is the share of the workers' time that they drive; of full speed is their agent-steps/s as a share of "
        "what they would come to with all lanes always at work",
        f"speed of a worker: {speed.all_lanes:,.0f} agent-steps/s with its {speed.lanes} lanes at work, "
        f"{1 / speed.step_s(1):,.0f} with one ({speed_from}); in between a step takes {speed.batch_s * 1e3:.2f} ms a "
        f"micro-batch of {speed.micro_batch} and {speed.lane_s * 1e3:.2f} ms a lane",
        "a worker is a vCPU, and a vCPU is as fast as the one measured, all being at work: where two vCPUs are "
        "hyperthreads of a core, measure on such a machine",
        lengths,
        f"validation every {evolve.validate_every} generations: {evolve.validation_episodes} episodes of "
        f"{config.env.actions_in(config.env.max_episode_steps):,} steps, while no others are driven",
        "episodes are handed out as the pool does: whoever ends one is given what keeps its lanes full, as far as that "
        "is fair, and up to half of a fair share of what waits besides",
        f"the driver takes {costs.dispatch_s * 1e3:g} ms an episode, one after the other, and "
        f"{costs.overhead_s * 1e3:g} ms a generation while workers wait; what passes until it looks for answers, up to "
        "50 ms beyond 32 workers, is left out",
        f"an evolution asks for one worker a micro-batch of a generation's episodes, {_asked_for(config):,} here; to "
        "have more (or fewer), -o execution.workers=N",
        "workers have ordinary priority: nodes are started with RAY_worker_niceness=0, as by cluster/*.yaml; at Ray's "
        "default, nice 15, one busy program on a node takes nearly all of a core from them",
        "workers are up from beginning to end and none is lost; what comes before and after the evolution, the "
        "driver's machine, GPUs and storage are not in it",
    ]
    if price is not None:
        lines.append(f"${price:g} a vCPU-hour, for idle workers too")
    published = PUBLISHED.get(config.env.id)
    if published is None or goals(config)[0][0] is None:
        lines.append("no scores: none is published for this environment with as many candidates and episodes")
    else:
        scale = published.scale
        lines.append(
            f"scores are the paper's, of the CMA mean over {published.curve_episodes:,} episodes, after the "
            f"generations that its evolution took: whether another one gets there is another question. Its "
            f"{scale.generations:,} took {scale.hours:,} hours on {scale.cores} cores"
        )
    return lines


def figures(estimates: Sequence[Estimate], price: float | None, speed_from: str) -> dict[str, Any]:
    """The plan as JSON has it; the same arguments as ``describe``'s."""
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
