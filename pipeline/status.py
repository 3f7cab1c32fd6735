"""``world-models status``: where a run is, from what it has committed."""

from __future__ import annotations

from typing import Any

from pipeline.errors import StorageError
from pipeline.evolution.state import read_progress
from pipeline.presets import CONFIG_KEY, saved_config
from pipeline.run import STAGES, Stage
from pipeline.sittings import read_sittings
from pipeline.stages.collect import num_shards
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.manifest import outgrown, read_manifest, read_records
from pipeline.storage.store import Store


def describe_run(store: Store) -> str:
    """A table of stages, and how the evolution stands.

    Raises:
        StorageError: there is no run here.
    """
    if not store.exists(CONFIG_KEY):
        raise StorageError(
            f"{store.locate()} holds no run: there is no {CONFIG_KEY}. Begin one with `world-models run`."
        )
    config = saved_config(store)
    lines = [f"{config.name} at {store.locate()}, seed {config.seed}, {config.env.id}"]
    shards = num_shards(config)
    for stage in STAGES:
        manifest = read_manifest(store, stage.prefix)
        if manifest is not None and outgrown(store, manifest):
            lines.append(f"  {stage.name:<13} out of date: what it was made from has grown")
        elif manifest is not None:
            lines.append(f"  {stage.name:<13} complete    {_seconds(manifest.info):>9}  {_facts(manifest.info)}")
        else:
            lines.append(f"  {stage.name:<13} {_unfinished(store, stage, shards)}")
    state = _evolution(store)
    if state is not None and state["history"]:
        last = state["history"][-1]
        lines.append(
            f"evolution: generation {last.generation} of {config.evolve.generations}, fitness {last.fitness_mean:.1f} "
            f"(best candidate {last.fitness_max:.1f}), {state['seconds'] / last.generation:.1f} s a generation, "
            f"{state['env_steps']:,} steps"
        )
        if state["best_validation"] is not None:
            lines.append(f"  best on validation {state['best_validation']:.1f}, generation {state['best_generation']}")
    sittings = [row for row in read_sittings(store) if row["event"] == "begin"]
    if sittings:
        last_one = sittings[-1]
        lines.append(f"sittings: {len(sittings)}, the last on {last_one['host']}, pid {last_one['pid']}")
    return "\n".join(lines)


def _unfinished(store: Store, stage: Stage, shards: int) -> str:
    records = len(read_records(store, stage.prefix))
    steps = Checkpoints(store, stage.prefix).steps()
    if steps:
        return f"unfinished             checkpoint at {steps[-1]:,}"
    if records and stage.prefix in ("rollouts", "latents"):
        return f"unfinished             {records} of {shards} shards"
    return "unfinished" if records else "-"


def _seconds(info: Any) -> str:
    return f"{info['seconds']:,.1f} s"


def _facts(info: Any) -> str:
    """What a stage's manifest says of itself, in a few words."""
    shown = ("env_steps", "frames", "steps", "best_epoch", "loss", "generations", "best_validation", "init", "device")
    parts = []
    for key in shown:
        value = info.get(key)
        if value is not None:
            parts.append(f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


def _evolution(store: Store) -> dict[str, Any] | None:
    latest = Checkpoints(store, "evolution").latest()
    return read_progress(latest[1]) if latest else None


def achieved(store: Store) -> str:
    """What a complete run came to, and where its report is."""
    lines = []
    evaluation = read_manifest(store, "evaluation")
    if evaluation is not None:
        names = {"mean": "CMA mean", "best": "best on validation"}
        for name, score in evaluation.info["controllers"].items():
            lines.append(
                f"{names[name]}: return {score['mean']:.1f} +- {score['sd']:.1f} (95 % interval {score['low']:.1f} to "
                f"{score['high']:.1f}) on {score['episodes']} test tracks that nothing was selected on"
            )
    if read_manifest(store, "report") is not None:
        lines.append(f"report: {store.locate('report/index.html')}")
    return "\n".join(lines)
