"""Checks before a run: estimates of its cost, and refusal of a run that does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.base.formatting import binary_size, counted, rough_duration
from pipeline.base.machine import memory_bytes, num_cores
from pipeline.base.ray_environment import has_uploaded_sources
from pipeline.base.threads import check_thread_limit
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import ExecutionConfig, RunConfig
from pipeline.data.frames import FRAME_SIZE
from pipeline.data.rounds import config_in, episodes_of, rounds_of
from pipeline.envs.registry import traits_of
from pipeline.models.controller import ControllerShape
from pipeline.stages.table import (
    COLLECT,
    ENCODE,
    EVALUATE,
    EVOLVE,
    MAKE_REPORT,
    TRAIN_MDNRNN,
    TRAIN_VAE,
    Stage,
    stages_of,
)
from pipeline.storage.manifest import read_manifest
from pipeline.storage.run_dir import check_lasting
from pipeline.storage.store import Store

# Rough costs, measured on one core of a 2-core AVX-512 machine; used only for estimates.
_CAR_RACING_STEPS_PER_S = {"texture": 2_700.0, "gymnasium": 90.0}  # agent-steps
_NETWORK_STEPS_PER_S = 6_000.0  # agent-steps in an environment that costs nothing
_RANDOM_STEPS_PER_S = {"brownian": 3_000.0, "white": 3_000.0, "repeat": 3_000.0, "random-controller": 700.0}
_VAE_FRAMES_PER_S = 320.0
_ENCODED_FRAMES_PER_S = 5_000.0
_RNN_STEPS_PER_S = 15_000.0
_FRAME_BYTES = 900.0  # compressed
_VAE_PARAMETERS, _RNN_PARAMETERS = 4.4e6, 0.5e6
_TRAINING_PROCESS_BYTES, _WORKER_PROCESS_BYTES = 1.2e9, 0.8e9
_RNN_STEP_BYTES = 33_000.0  # kept for the backward pass, at 256 hidden units and 160 components
_DREAM_WEIGHTS_PER_S = 2e10  # weights of M times dream steps per second, of `world-models bench dream`
_START_S = {"ray": 4.0, "in-process": 1.5}  # start of a stage's processes, with their imports
_VAE_FRAME_BYTES = 1.0e6  # kept for the backward pass


@dataclass(frozen=True)
class StageEstimate:
    """Estimated cost of one stage.

    Attributes:
        stage: Name of the stage.
        work: Description of the work.
        seconds: Approximate time in seconds.
        disk_bytes: Bytes written to the run directory.
        memory: Peak bytes of all processes together, by the config key that each part grows with; ``""`` for the part
            that no key changes.
        at_most: Whether the time is that of episodes at their limit, which may end before.
    """

    stage: str
    work: str
    seconds: float
    disk_bytes: float
    memory: Mapping[str, float]
    at_most: bool = False

    @property
    def memory_bytes(self) -> float:
        """Peak memory in total."""
        return sum(self.memory.values())


def num_workers(execution: ExecutionConfig) -> int:
    """Number of workers of a run on this machine."""
    if execution.executor == "in-process":
        return 1
    return execution.workers or num_cores()


def estimate(
    config: RunConfig, env_rate: float | None = None, collected_actions: float | None = None
) -> list[StageEstimate]:
    """Estimate each stage of each round roughly, with episodes at their limit whose length is not known.

    Args:
        config: Config of the run.
        env_rate: Measured actions per second of the environment; None: the known rates of CarRacing.
        collected_actions: Measured mean actions of the first round's collected episodes; None: they are at their limit.
    """
    collected = config.collect.episodes
    limit = config.env.actions_in(config.collect.episode_steps)
    length = collected_actions or limit
    frames = collected * length
    first = _Episodes(collected, collected, frames, frames, frames, config.collect.policy, collected_actions)
    *rows, report = _estimate(config, first, env_rate)
    if config.evaluate.agent is not None:
        return [row for row in rows if row.stage == EVALUATE]
    for at in rounds_of(config.rounds)[1:]:
        so_far, new = episodes_of(config, at).stop, config.rounds.episodes
        new_frames = new * limit
        frames = collected * length + (so_far - collected) * limit
        encoded_frames = frames if config.rounds.vae_epochs else new_frames
        # An agent collects about as slowly as random controllers do.
        episodes = _Episodes(new, so_far, new_frames, frames, encoded_frames, "random-controller", None)
        for row in _estimate(config.in_round(at.number), episodes, env_rate)[:-1]:
            if row.stage != TRAIN_VAE or config.rounds.vae_epochs:
                rows.append(replace(row, stage=_name(at.number, row.stage)))
    return [*rows, report]


def _name(number: int, stage: str) -> str:
    """Name of a stage of a round in the table."""
    return stage if number == 1 else f"{number}: {stage}"


@dataclass(frozen=True)
class _Episodes:
    """Episodes of a round.

    Attributes:
        new: Number of episodes that it collects.
        so_far: Number of episodes that V and M train on.
        new_frames, frames, encoded_frames: Numbers of frames that are collected, trained on, and encoded.
        policy: Policy that collects.
        length: Measured mean actions of an episode; None: all are at their limit.
    """

    new: int
    so_far: int
    new_frames: float
    frames: float
    encoded_frames: float
    policy: str
    length: float | None

    @property
    def at_most(self) -> bool:
        """Whether episodes are counted at their limit."""
        return self.length is None


def _estimate(config: RunConfig, episodes: _Episodes, env_rate: float | None) -> list[StageEstimate]:
    """Estimate the stages of a round, and the report."""
    workers = num_workers(config.execution)
    cores = min(workers, num_cores())
    collect, vae, rnn, evolve = config.collect, config.vae, config.mdnrnn, config.evolve
    episode_frames = config.env.actions_in(collect.episode_steps)
    new_frames, frames, encoded_frames = episodes.new_frames, episodes.frames, episodes.encoded_frames
    shard_frames, most_frames = collect.episodes_per_shard * episode_frames, episodes.so_far * episode_frames
    length = f"of up to {collect.episode_steps:,} steps"
    if episodes.length is not None:
        length = f"of about {episodes.length * config.env.action_repeat:,.0f} steps"
    of_workers = {"execution.workers": workers * _WORKER_PROCESS_BYTES}
    of_shards = {"collect.episodes_per_shard": workers * shard_frames * FRAME_SIZE}
    latent_bytes = 8 * vae.z_size + 32
    training_episodes = evolve.episodes_until(evolve.generations) * evolve.population_size
    validations = evolve.generations // evolve.validate_every
    longest = config.env.actions_in(config.env.max_episode_steps)
    evolve_steps = validations * evolve.validation_episodes * longest
    scored_in, dream_s = "episodes", 0.0
    dreamt = sum(evolve.dreams_at(generation) for generation in range(1, evolve.generations + 1))
    dreams = evolve.episodes_until(dreamt) * evolve.population_size
    evolve_steps += (training_episodes - dreams) * config.env.actions_in(
        evolve.episode_steps or config.env.max_episode_steps
    )
    if dreamt:
        dreams += validations * evolve.validation_dreams
        dream_s = dreams * config.dream.max_steps / (_DREAM_WEIGHTS_PER_S / _lstm_weights(config.agent))
        scored_in = f"dreams of up to {config.dream.max_steps:,} steps"
        if dreamt < evolve.generations:
            scored_in += f", from generation {dreamt + 1} on in the environment"
    parameters = ControllerShape.of_agent(config.agent, traits_of(config.env).actions.size).num_parameters
    covariance_bytes = 8 * parameters**2
    window_bytes = _RNN_STEP_BYTES * (rnn.hidden_size / 256 + vae.z_size * rnn.mixtures / 160) / 2 * rnn.window
    windows = episodes.so_far * -(-episode_frames // rnn.window)  # upper limit of a batch
    rate = _CAR_RACING_STEPS_PER_S
    if env_rate is not None:
        rate = dict.fromkeys(rate, 1 / (1 / env_rate + 1 / _NETWORK_STEPS_PER_S))
    # A policy's own cost, and the environment's without that of an agent.
    collect_rate = min(_RANDOM_STEPS_PER_S[episodes.policy], env_rate or 1.4 * rate[config.env.rendering])
    external = config.evaluate.agent is not None
    num_controllers = 2 if config.evaluate.controllers == "both" and not external else 1
    played = counted(num_controllers, "agent" if external else "controller")
    evaluate_steps = num_controllers * config.evaluate.episodes * longest
    rnn_steps = frames * (rnn.epochs if rnn.init == "trained" else 0)
    stages = [
        StageEstimate(
            COLLECT, f"{episodes.new:,} episodes {length}",
            new_frames / collect_rate / cores, new_frames * _FRAME_BYTES, {**of_workers, **of_shards},
            episodes.at_most,
        ),
        StageEstimate(
            TRAIN_VAE, f"{frames:,.0f} frames, up to {vae.epochs} epochs",
            frames * vae.epochs / _VAE_FRAMES_PER_S / min(vae.threads, num_cores()),
            3 * 4 * 4 * _VAE_PARAMETERS,
            {
                "": _TRAINING_PROCESS_BYTES,
                "vae.shuffle_frames": 2 * min(vae.shuffle_frames, most_frames) * FRAME_SIZE,
                "collect.episodes_per_shard": 2 * shard_frames * FRAME_SIZE,
                "vae.batch_size": min(vae.batch_size, most_frames) * _VAE_FRAME_BYTES,
            },
            episodes.at_most,
        ),
        StageEstimate(
            ENCODE, f"{encoded_frames:,.0f} frames",
            encoded_frames / _ENCODED_FRAMES_PER_S / cores, encoded_frames * latent_bytes, {**of_workers, **of_shards},
            episodes.at_most,
        ),
        StageEstimate(
            TRAIN_MDNRNN, f"{frames:,.0f} steps, up to {rnn.epochs} epochs" if rnn_steps else "initial weights",
            rnn_steps / _RNN_STEPS_PER_S / min(rnn.threads, num_cores()),
            3 * 4 * 4 * _RNN_PARAMETERS,
            {
                "": _TRAINING_PROCESS_BYTES,
                "mdnrnn.shuffle_frames": 2 * min(rnn.shuffle_frames, most_frames) * latent_bytes,
                "mdnrnn.batch_size": window_bytes * min(rnn.batch_size, windows) if rnn_steps else 0,
            },
            episodes.at_most and rnn_steps > 0,
        ),
        StageEstimate(
            EVOLVE,
            f"{evolve.generations:,} generations of {evolve.population_size} x {evolve.episodes} {scored_in}",
            (evolve_steps / rate[config.env.rendering] + dream_s) / cores,
            (evolve.keep_checkpoints + 1) * 3 * covariance_bytes, of_workers, True,
        ),
        StageEstimate(
            EVALUATE, f"{played} x {counted(config.evaluate.episodes, 'track')}",
            evaluate_steps / rate[config.evaluate.rendering] / cores, 10e6, of_workers, True,
        ),
        StageEstimate(MAKE_REPORT, "one page", 2.0, 10e6, {"": _TRAINING_PROCESS_BYTES}),
    ]  # fmt: skip
    start = _START_S[config.execution.executor]
    return [replace(stage, seconds=stage.seconds + start) for stage in stages]


def _lstm_weights(agent: AgentConfig) -> float:
    """Approximate number of weights of M that a step of a dream multiplies."""
    z_size, hidden_size = agent.vae.z_size, agent.mdnrnn.hidden_size
    return 4.0 * hidden_size * (hidden_size + z_size) + 3.0 * hidden_size * z_size * agent.mdnrnn.mixtures


def complete_stages(config: RunConfig, store: Store) -> list[Stage]:
    """Stages of a run that are complete: with the limits of the config, and made from complete stages as they are now.

    Raises:
        DamagedDataError: A manifest is damaged.
    """
    complete: list[Stage] = []
    digests: dict[str, str] = {}
    for stage in stages_of(config):
        manifest = read_manifest(store, stage.prefix)
        if (
            manifest is not None
            and manifest.grown == stage.limits(config_in(config, stage.round))
            and all(digests.get(prefix) == digest for prefix, digest in manifest.upstream.items())
        ):
            complete.append(stage)
            digests[stage.prefix] = manifest.digest
    return complete


def describe(
    config: RunConfig,
    run_dir: str,
    env_rate: float | None = None,
    collected_actions: float | None = None,
    complete: Sequence[Stage] = (),
) -> str:
    """Write the estimates as a table, with the sum over the incomplete stages.

    Args:
        config: Config of the run.
        run_dir: Location of the run.
        env_rate: Rate of the environment, see ``estimate``.
        collected_actions: Length of the collected episodes, see ``estimate``.
        complete: Stages that are complete.
    """
    done = {_name(stage.round.number, stage.name) for stage in complete}
    rows = estimate(config, env_rate, collected_actions)
    rest = [row for row in rows if row.stage not in done]
    workers = "the cluster's workers"
    if not config.execution.joins_cluster:
        workers = f"{counted(num_workers(config.execution), 'worker')} here"
    lines = [
        f"{config.name}: {config.env.id}, seed {config.seed}, executor {config.execution.executor} ({workers}), "
        f"run directory {run_dir}",
        f"  {'stage':<15} {'time if idle':>17}  {'disk':>9}  work",
    ]
    for row in rows:
        time, disk = ("complete", "") if row.stage in done else (_time([row]), binary_size(row.disk_bytes))
        lines.append(f"  {row.stage:<15} {time:>17}  {disk:>9}  {row.work}")
    if rest:
        time, disk = _time(rest), binary_size(sum(row.disk_bytes for row in rest))
        lines.append(
            f"  {'the rest' if done else 'all':<15} {time:>17}  {disk:>9}  "
            f"memory up to {binary_size(max(row.memory_bytes for row in rest))}; rough estimates for this machine if "
            "nothing else runs on it"
        )
    return "\n".join(lines)


def _time(rows: Sequence[StageEstimate]) -> str:
    text = rough_duration(sum(row.seconds for row in rows))
    return f"up to {text}" if any(row.at_most for row in rows) else text


def check(config: RunConfig, run_dir: str, collected_actions: float | None = None) -> None:
    """Refuse a run that does not fit on this machine, or a run directory that is deleted with a job's sources.

    Args:
        config: Config of the run.
        run_dir: Folder or ``s3://bucket/prefix``.
        collected_actions: Length of the collected episodes, see ``estimate``.

    Raises:
        ConfigError: There is not enough disk, memory or threads, or the folder is deleted with a job. The message names
            a remedy.
    """
    rows = estimate(config, collected_actions=collected_actions)
    if has_uploaded_sources():
        check_lasting(run_dir)
    if "://" not in run_dir:
        _check_disk(Path(run_dir), sum(row.disk_bytes for row in rows))
    if config.execution.joins_cluster:
        return  # each worker checks its own node
    check_thread_limit(max(config.vae.threads, config.mdnrnn.threads))
    memory = memory_bytes()
    worst = max(rows, key=lambda row: row.memory_bytes)
    if worst.memory_bytes > memory:
        key, most = max(((k, part) for k, part in worst.memory.items() if k), key=lambda item: item[1], default=("", 0))
        needed = (
            f"{worst.stage} needs about {binary_size(worst.memory_bytes)} of memory and this machine has "
            f"{binary_size(memory)}"
        )
        helps = most > worst.memory_bytes / 2 or worst.memory_bytes - most < memory
        raise ConfigError(f"{needed}: lower {key}, which takes {binary_size(most)} of it" if helps else needed)


def _check_disk(run_dir: Path, size_bytes: float) -> None:
    folder = run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    needed = size_bytes - _present_bytes(run_dir)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"the run needs about {binary_size(needed)} of disk and {folder} has {binary_size(free)} free: "
            "choose another --run-dir, or lower collect.episodes"
        )


def _present_bytes(folder: Path) -> int:
    """Bytes that earlier sessions have written."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
