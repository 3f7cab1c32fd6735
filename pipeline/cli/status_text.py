"""``world-models status``: state of a run, from its committed data."""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import SessionEnded
from pipeline.base.formatting import counted, duration, score
from pipeline.config.evolution import DreamConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION, MDNRNN, REPORT
from pipeline.data.quality import controller_names, held_out_quality, predicted_ends
from pipeline.data.rounds import FIRST, Round, encoded_rounds, rounds_of, shards_of
from pipeline.evolution.state import read_progress
from pipeline.stages.table import COLLECT, ENCODE, EVALUATE, EVOLVE, Stage, stages_of
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import GAME, PAGE, TEMPERATURE, view_key
from pipeline.storage.manifest import read_manifest, read_records, stale_inputs
from pipeline.storage.saved_config import saved_config
from pipeline.storage.sessions import Session, last_session
from pipeline.storage.store import Store


def describe_run(store: Store) -> str:
    """Describe a run: a table of stages, the state of the evolution, the last checkpoint and the driver.

    Raises:
        StorageError: There is no run here.
    """
    config = saved_config(store)
    lines = [f"{config.name} at {store.locate()}, seed {config.seed}, {config.env.id}"]
    at = FIRST
    for stage in stages_of(config):
        if stage.round != at:
            at = stage.round
            lines.append(f"round {at.number}" if at != FIRST else "all rounds")
        manifest = read_manifest(store, stage.prefix)
        if manifest is not None and stale_inputs(store, manifest):
            lines.append(f"  {stage.name:<13} out of date: its inputs have grown")
        elif manifest is not None:
            lines.append(
                f"  {stage.name:<13} complete  {duration(manifest.info['seconds']):>11}  {_facts(manifest.info)}"
            )
            if stage.name == EVOLVE and config.evolve.select == "dream":
                lines[-1] += f"; best_validation is in dreams ({_recall(config.dream, store, stage.round)})"
        else:
            lines.append(f"  {stage.name:<13} {_unfinished(config, store, stage)}")
    lines += _branches(config, store)
    at, state = _evolution(config, store)
    if state is not None and state["history"]:
        last = state["history"][-1]
        each_s = state["seconds"] / last.generation
        ended = read_manifest(store, at.folder(EVOLUTION)) is not None
        generations = config.in_round(at.number).evolve.generations
        left = max(0, generations - last.generation) * each_s
        recall = _recall(config.dream, store, at)
        dreamt = f", in dreams: {recall}" if config.in_round(at.number).evolve.dreams_at(last.generation) else ""
        of_round = "" if at == FIRST else f"round {at.number}, "
        lines.append(
            f"evolution: {of_round}generation {last.generation} of {generations}, fitness {last.fitness_mean:.1f} "
            f"(best candidate {last.fitness_max:.1f}{dreamt}), {each_s:.1f} s/generation, "
            f"{'ended' if ended else f'{duration(left)} left'}, {state['env_steps']:,} steps"
        )
        if state["best_validation"] is not None:
            lines.append(
                f"  {controller_names(config.evolve.select)['best']} {state['best_validation']:.1f}, generation "
                f"{state['best_generation']}{f' ({recall})' if config.evolve.select == 'dream' else ''}"
            )
    checkpoint = newest_checkpoint(config, store)
    if checkpoint is not None:
        lines.append(f"last checkpoint: {checkpoint}")
    session = last_session(store)
    if session is not None:
        lines.append(_owner(session))
    return "\n".join(lines)


def _recall(config: DreamConfig, store: Store, at: Round) -> str:
    """Share of the ends that a round's M predicts, in words."""
    manifest = read_manifest(store, at.folder(MDNRNN))
    return predicted_ends(held_out_quality(manifest.info if manifest else {}, config.end_probability))


def _branches(config: RunConfig, store: Store) -> list[str]:
    """Lines on the evolutions of ``world-models temperatures``."""
    lines = []
    for at in rounds_of(config.rounds):
        starts = (at.folder(TEMPERATURE), at.folder(f"{GAME}/"))
        keys = [key for start in starts for key in store.list(start)]
        for branch in sorted({key.removeprefix(at.folder("")).split("/")[0] for key in keys}):
            evolved, evaluated = (
                read_manifest(store, Round(at.number, branch).folder(name)) for name in (EVOLUTION, EVALUATION)
            )
            generations = Checkpoints(store, Round(at.number, branch).folder(EVOLUTION)).steps()
            state = f"generation {generations[-1]}" if generations else "begun"
            if evolved is not None:
                state = "evaluated" if evaluated is not None else "evolved"
            lines.append(f"  {at.folder(branch):<13} {state}")
    return lines


def newest_checkpoint(config: RunConfig, store: Store) -> str | None:
    """Newest checkpoint of all stages, in words."""
    checkpoints = {stage: Checkpoints(store, stage.prefix) for stage in stages_of(config)}
    ages = {stage: age for stage, found in checkpoints.items() if (age := found.age_s()) is not None}
    if not ages:
        return None
    # Of equal ages, which some stores give by the second, the later stage's.
    newest = min(reversed(ages), key=ages.__getitem__)
    unit = {EVOLVE: "generation", EVALUATE: "episode"}.get(newest.name, "step")
    return f"{newest.title}, {unit} {checkpoints[newest].steps()[-1]:,}, {_ago(ages[newest])}"


_ENDINGS = {
    "complete": "ended",
    "interrupted": "was interrupted",
    "copied": "was copied",
    SessionEnded.__name__: "reached its time limit",
}


def _owner(session: Session) -> str:
    """The run's driver, or its last one, and whether it is alive, in words."""
    owner = session.owner
    if session.ended is not None:
        how = _ENDINGS.get(session.ended, f"ended with {session.ended}")
        return f"no driver; the last was {owner}, which {how} {_ago(session.age_s)}"
    sign = f"last sign of life {_ago(session.age_s)}"
    if owner.alive_here is False:
        return f"no driver; the last was {owner}, which died; {sign}"
    if session.over:
        return f"probably no driver; the last was {owner}, which is silent; {sign}"
    if owner.alive_here and not session.seen_alive:
        return f"driver: {owner}, whose process exists but gives no sign of life (frozen?); {sign}"
    workers = f" with {counted(session.workers, 'worker')}" if session.workers else ""
    return f"driver: {owner}, alive{workers}; {sign}"


def _ago(seconds: float) -> str:
    return f"{duration(seconds)} ago"


def _unfinished(config: RunConfig, store: Store, stage: Stage) -> str:
    records = len(read_records(store, stage.prefix))
    steps = Checkpoints(store, stage.prefix).steps()
    if steps:
        return f"unfinished             checkpoint at {steps[-1]:,}"
    if records and stage.name in (COLLECT, ENCODE):
        at = stage.round
        shown = encoded_rounds(config.rounds, at) if stage.name == ENCODE else [at]
        shards = sum(len(shards_of(config, each)) for each in shown)
        return f"unfinished             {records} of {shards} shards"
    return "unfinished" if records else "-"


def _facts(info: Any) -> str:
    """Main facts of a stage's manifest, in a few words."""
    shown = (
        "env_steps",
        "frames",
        "steps",
        "best_epoch",
        "loss",
        "generations",
        "best_validation",
        "init",
        "device",
        "precision",
    )
    parts = []
    for key in shown:
        value = info.get(key)
        if value is not None:
            parts.append(f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


def _evolution(config: RunConfig, store: Store) -> tuple[Round, dict[str, Any] | None]:
    """The last round whose evolution has begun, and its state."""
    for at in reversed(rounds_of(config.rounds)):
        latest = Checkpoints(store, at.folder(EVOLUTION)).latest()
        if latest is not None:
            return at, read_progress(latest[1])
    return FIRST, None


def summarise_scores(store: Store) -> str:
    """Describe the scores of a complete run, round by round, and the location of its report."""
    lines = []
    config = saved_config(store)
    names = {"agent": config.evaluate.agent, **controller_names(config.evolve.select)}
    for at in rounds_of(config.rounds):
        evaluation = read_manifest(store, at.folder(EVALUATION))
        if evaluation is None:
            break
        if config.rounds.count > 1:
            lines.append(f"round {at.number}")
        for name, found in evaluation.info["controllers"].items():
            if found["episodes"] > 1:
                lines.append(
                    f"{names[name]}: return {score(found)} on {found['episodes']} test tracks, none used for selection"
                )
            else:
                lines.append(f"{names[name]}: return {found['mean']:.1f} on one test track, too few for a score")
    if read_manifest(store, REPORT) is not None:
        lines.append(f"report: {store.locate(view_key(REPORT, PAGE))}")
    return "\n".join(lines)
