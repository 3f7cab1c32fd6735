"""Tasks on Ray that raise, die, hang or wait: they restart, one at a time, or end with their cause."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from actors import task as task_module
from actors.task import TaskTry
from pipeline.base.errors import JobError
from pipeline.base.machine import process_started
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Resources
from tests.cluster.clocks import hanging_counts_as_silent
from tests.cluster.test_executors import leave_faults, log_exists, ray_executor
from tests.cluster.toys import counting_task, faulty_task, hung_processes


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("how", ["raises", "dies", "dies at once", "hangs", "stops"])
def test_failed_task_restarts_after_its_process_has_ended(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "hangs":  # without a cancellation, the process would continue for an hour
        monkeypatch.setattr(TaskTry, "cancel", lambda _: None)
    leave_faults(tmp_path, 2)
    with hanging_counts_as_silent(tmp_path):
        begun = ray_executor(1).run(faulty_task, str(tmp_path), how, resources=Resources(), on_update=lambda _: None)
    assert begun == 3
    hung = hung_processes(tmp_path)
    assert len(hung) == (2 if how in ("hangs", "stops") else 0)
    assert not list(tmp_path.glob("beside-*")), "no try began while a hanging one was alive"
    assert all(process_started(pid) is None for pid in hung)


@pytest.mark.usefixtures("local_ray")
def test_task_does_not_restart_if_its_process_cannot_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskTry, "cancel", lambda _: None)
    monkeypatch.setattr(task_module, "_END_S", 0.0)
    leave_faults(tmp_path, 2)
    try:
        with hanging_counts_as_silent(tmp_path), pytest.raises(JobError, match="its process cannot be ended") as caught:
            ray_executor(1).run(faulty_task, str(tmp_path), "hangs", resources=Resources(), on_update=lambda _: None)
    finally:
        for pid in hung_processes(tmp_path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert log_exists(str(caught.value))
    assert len(list(tmp_path.glob("begun-*"))) == 1


def test_in_process_task_restarts_after_an_environment_error(tmp_path: Path) -> None:
    leave_faults(tmp_path, 2)
    task = (faulty_task, str(tmp_path), "raises")
    assert InProcessExecutor().run(*task, resources=Resources(), on_update=lambda _: None) == 3
    leave_faults(tmp_path, 3)
    with pytest.raises(JobError, match=r"^faulty_task was tried 3 times; .*divided by zero.*the same command"):
        InProcessExecutor().run(*task, resources=Resources(), on_update=lambda _: None)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "the environment of the film divided by zero"),
        ("dies", "its worker died"),
        ("dies at once", "its worker died"),
        ("hangs", r"it gave no sign of life for 900 s and was killed \(execution.timeout_s:"),
    ],
)
def test_task_that_always_fails_ends_with_its_cause_and_the_log(tmp_path: Path, how: str, said: str) -> None:
    leave_faults(tmp_path, 9)
    with (
        hanging_counts_as_silent(tmp_path),
        pytest.raises(JobError, match=rf"toys was tried 2 times; the last time (?s:.*){said}") as caught,
    ):
        ray_executor(1, max_attempts=2).run(
            faulty_task, str(tmp_path), how, resources=Resources(), on_update=lambda _: None
        )
    assert log_exists(str(caught.value))
    assert len(list(tmp_path.glob("begun-*"))) == 2


@pytest.mark.usefixtures("local_ray")
def test_task_too_large_for_every_node_names_the_missing_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(*said: str) -> None:
        raise _Warned(said[1])

    monkeypatch.setattr(task_module, "WARN_EVERY_S", 1.0)
    monkeypatch.setattr(task_module.logger, "warning", say)
    with pytest.raises(_Warned, match=r"toys waits for a node with 64 free CPUs; the largest that is up has 4 CPUs"):
        ray_executor(1).run(counting_task, 5, resources=Resources(threads=64), on_update=lambda _: None)


class _Warned(Exception):
    """Ends the wait of the task."""
