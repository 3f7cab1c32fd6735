"""SIGKILL between each two writes: every session dies at a failpoint, and the run gives the same result."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from pipeline.base.failpoints import FAILPOINTS, VARIABLE
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.storage.sessions import session_numbers
from tests.e2e import command

# Each is a failpoint and the number of its pass, counted from the start of the session. The comments name the object
# or the stage that it hits. A session resumes where the one before died.
KILLS = (
    "session-begun@1",
    "config-written@1",
    "stage-begun@1",  # collect
    "object-half-written@9",  # in collect
    "data-written@2",  # the second shard of this session
    "record-created@1",
    "stage-done@1",
    "stage-sealed@1",  # collect
    "object-half-written@9",  # in train-vae
    "checkpoint-data-written@1",
    "checkpoint-recorded@2",
    "checkpoint-half-removed@1",
    "data-written@1",  # V's weights
    "record-created@1",
    "data-written@2",  # V's picture, or the first latents
    "stage-begun@1",
    "record-created@3",
    "stage-sealed@1",
    "checkpoint-recorded@1",  # train-mdnrnn
    "stage-sealed@1",
    "generation-scored@2",
    "search-updated@1",
    "checkpoint-data-written@1",
    "checkpoint-recorded@1",
    "checkpoint-half-removed@1",
    "generation-scored@1",
    "record-created@1",  # the controllers
    "stage-done@1",
    "checkpoint-recorded@1",  # evaluate
    "data-written@2",
    "stage-sealed@1",
    "data-written@1",  # the report
    "record-created@2",
)
GROWN = (
    "stage-superseded@1",
    "stage-begun@1",
    "search-updated@1",
    "stage-superseded@1",  # evaluate
    "stage-sealed@1",
)


def preset(folder: Path, generations: int = 5) -> str:
    return command.counting_preset(
        folder, vae__epochs=4, mdnrnn__epochs=3, evolve__generations=generations, evolve__keep_checkpoints=2
    )


def killed_at(failpoint: str, *arguments: str) -> str:
    """Run the command until it dies at a failpoint; returns its output."""
    code, output = command.run(*arguments, environment={VARIABLE: failpoint})
    assert code == -signal.SIGKILL, f"{failpoint} was not passed:\n{output}"
    return output


def test_every_failpoint_has_a_kill_test() -> None:
    assert {kill.partition("@")[0] for kill in (*KILLS, *GROWN)} == set(FAILPOINTS)


def test_run_killed_between_writes_gives_the_same_bits(tmp_path: Path) -> None:
    config, straight = preset(tmp_path), tmp_path / "straight"
    code, output = command.run("run", config, "--run-dir", str(straight), from_scratch=True)
    assert code == 0, output
    folder = tmp_path / "run"
    store = LocalStore(folder)
    for kill in KILLS:
        killed_at(kill, "run", config, "--run-dir", str(folder))
        if store.exists("config.yaml"):
            assert check_run(store).problems == [], f"after {kill}"
    # `resume` does the same as `run`.
    code, output = command.run("resume", str(folder))
    assert code == 0, output
    assert command.outcome(folder) == command.outcome(straight)
    assert len(session_numbers(store)) == len(KILLS) + 1
    for stage in ("rollouts", "vae", "mdnrnn", "evolution", "evaluation"):
        rows = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows if "held_out_loss" not in row]
        assert steps == sorted(set(steps)), f"{stage}: doubled points"

    # Extend the evolution with kills, and compare it with one that is extended without.
    config = preset(tmp_path, generations=6)
    for kill in GROWN:
        killed_at(kill, "run", config, "--run-dir", str(folder))
        assert [problem for problem in check_run(store).problems if "was made from another" not in problem] == []
    for place in (folder, straight):
        code, output = command.run("run", config, "--run-dir", str(place))
        assert code == 0, output
    assert command.outcome(folder) == command.outcome(straight)
    assert check_run(store).problems == []
