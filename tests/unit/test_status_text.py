"""The checkpoints in the output of `status`."""

from __future__ import annotations

import os
import time

import pytest

from pipeline.base.errors import StorageError
from pipeline.cli import status_text
from pipeline.cli.main import is_resumable, main, make_parser
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import record_key
from pipeline.storage.local import LocalStore


def test_last_checkpoint_is_the_newest_of_all_stages(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_text.newest_checkpoint(RunConfig(), local_store) is None
    for prefix, age_s in ((EVALUATION, 3600.0), (EVOLUTION, 100.0)):
        checkpoints = Checkpoints(local_store, prefix)
        checkpoints.save(4, b"not read here")
        written = time.time() - age_s
        os.utime(local_store.root / record_key(checkpoints.prefix, checkpoints.names()[0]), (written, written))
    real_age_s = LocalStore.age_s
    monkeypatch.setattr(LocalStore, "age_s", lambda *at: round(real_age_s(*at), -2))  # a slow machine adds seconds
    newest = status_text.newest_checkpoint(RunConfig(), local_store)
    assert newest is not None and newest.startswith("evolve, generation 4, 1 min")


@pytest.mark.parametrize(
    ("remedy", "said"), [("", "no answer"), ("set the clock", "no answer. Set the clock, then try again.")]
)
def test_an_error_of_a_command_that_reads_says_nothing_of_saved_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], remedy: str, said: str
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no answer", resume_after=remedy)

    monkeypatch.setattr(status_text, "describe_run", fail)
    monkeypatch.setattr("pipeline.cli.run.load_config", fail)
    assert main(["status", "somewhere"]) == 1
    assert capsys.readouterr().err == f"world-models: {said}\n"
    assert main(["run", "smoke"]) == 1
    assert "no answer. Completed work is saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "resumable"),
    [
        (["storage", "check", "x"], False),
        (["storage", "gc", "x"], False),
        (["storage", "gc", "x", "--delete"], True),
        (["storage", "copy", "x", "y"], True),
        (["compare", "x"], False),
        (["train-vae", "smoke"], True),
    ],
)
def test_commands_that_write_a_run_can_be_resumed(arguments: list[str], resumable: bool) -> None:
    assert is_resumable(make_parser().parse_args(arguments)) is resumable


@pytest.mark.parametrize("arguments", [["status", "x", "--json"], ["storage", "check", "x", "--json"]])
def test_an_unknown_option_is_refused_with_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    command = " ".join(arguments[:-2])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"usage: world-models {command} [-h]")
    assert error.endswith(f"world-models {command}: error: unrecognized arguments: --json\n")
