"""The executor's contract, on both executors."""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError

from actors import listening
from actors.executor import RayExecutor
from actors.worker_handle import WorkerHandle
from pipeline.base.errors import DamagedDataError, JobError
from pipeline.base.progress import Update
from pipeline.config.schema import ExecutionConfig
from pipeline.execution import node_watch
from pipeline.execution import scheduler as scheduler_module
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.jobs import MapJobs
from pipeline.execution.protocol import Executor, Pool, Resources
from tests.cluster.clocks import hanging_counts_as_silent, no_copies
from tests.cluster.elastic import patched_to_many
from tests.cluster.toys import (
    Damaged,
    Dying,
    Hanging,
    Labelled,
    Labels,
    Number,
    OneSlow,
    Paced,
    Raising,
    Squares,
    Threads,
    arriving,
    counting_task,
    failing_task,
    hung_processes,
)
from tests.storage.proxy import wait_until


def ray_executor(workers: int, *, max_attempts: int = 3, timeout_s: float = 900.0) -> RayExecutor:
    execution = {"workers": workers, "max_attempts": max_attempts, "timeout_s": timeout_s}
    return RayExecutor(ExecutionConfig.model_validate(execution))


@pytest.fixture(params=["in-process", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "in-process":
        yield InProcessExecutor()
        return
    request.getfixturevalue("local_ray")
    made = ray_executor(2)
    with no_copies():
        yield made
    made.close()


@pytest.mark.parametrize("jobs_at_once", [1, 4, 100])
def test_each_job_runs_once_and_its_result_has_its_id(executor: Executor, tmp_path: Path, jobs_at_once: int) -> None:
    jobs = [Number(i) for i in range(17)]
    with executor.pool(Squares, str(tmp_path), jobs_at_once=jobs_at_once) as pool:
        results = list(pool.map(jobs))
    assert sorted(results) == [(i, i * i) for i in range(17)]
    ran = sorted(int(path.name.split("-")[0]) for path in tmp_path.iterdir())
    assert ran == list(range(17))


def test_a_pool_takes_several_calls(executor: Executor, tmp_path: Path) -> None:
    with executor.pool(Squares, str(tmp_path), jobs_at_once=2) as pool:
        for first in (0, 10, 20):
            assert dict(pool.map([Number(first), Number(first + 1), Number(first + 2)])) == {
                i: i * i for i in range(first, first + 3)
            }
        assert list(pool.map([])) == []


def test_results_of_a_map_that_was_left_do_not_count_in_the_next(executor: Executor) -> None:
    with executor.pool(Labels, jobs_at_once=4) as pool:
        for _ in pool.map([Labelled(number, "first") for number in range(12)]):
            break
        second = list(pool.map([Labelled(number, "second") for number in range(12)]))
    assert sorted(second) == [(number, "second") for number in range(12)]


def squares_of(pool: Pool, count: int, folder: Path | None = None) -> bool:
    """Whether a pool gives the squares of ``count`` numbers, each once. Notes each arrival in a folder, if given."""
    results = pool.map(Number(i) for i in range(count))
    return sorted(results if folder is None else arriving(results, folder)) == [(i, i * i) for i in range(count)]


def leave_faults(folder: Path, count: int, *jobs: int) -> None:
    """Put ``count`` faults for each of the jobs into a folder, or ``count`` faults of no particular job."""
    for number in range(count):
        for name in [f"fault-{job}-{number}" for job in jobs] or [f"fault-{number}"]:
            (folder / name).touch()


@pytest.mark.parametrize("named", [True, False])
def test_job_that_raises_is_tried_again(executor: Executor, tmp_path: Path, named: bool) -> None:
    leave_faults(tmp_path, 2, 5)
    with executor.pool(Raising, str(tmp_path), named, jobs_at_once=3) as pool:
        assert squares_of(pool, 12)
        assert pool.retries == 2 if named else pool.retries >= 2
    assert not list(tmp_path.glob("fault-*"))


@pytest.mark.parametrize("named", [True, False])
def test_job_that_always_raises_is_named_with_its_cause(executor: Executor, tmp_path: Path, named: bool) -> None:
    leave_faults(tmp_path, 9, 5)
    with (
        executor.pool(Raising, str(tmp_path), named, jobs_at_once=4) as pool,
        pytest.raises(JobError, match=r"^job 5 was tried 3 times; the last time .*divided by zero.*in the same way"),
    ):
        list(pool.map([Number(i) for i in range(12)]))
    assert len(list(tmp_path.glob("fault-*"))) == 6, "one fault per try"


def test_error_that_names_a_job_costs_other_jobs_no_try(executor: Executor, tmp_path: Path) -> None:
    leave_faults(tmp_path, 2, *range(5))
    with executor.pool(Raising, str(tmp_path), True, jobs_at_once=6) as pool:
        assert squares_of(pool, 6), "the later jobs were in the same calls as the raising ones"
        assert pool.retries == 10


def test_worker_is_rebuilt_only_after_an_error_that_names_no_job(executor: Executor, tmp_path: Path) -> None:
    made = []
    for named in (True, False):
        folder = tmp_path / str(named)
        folder.mkdir()
        leave_faults(folder, 2, 0)
        with executor.pool(Raising, str(folder), named, jobs_at_once=1) as pool:
            assert squares_of(pool, 1)
        made.append(len(list(folder.glob("made-*"))))
    assert made == [1, 3]


def test_jobs_with_a_single_try_are_not_split_after_a_failure(tmp_path: Path) -> None:
    leave_faults(tmp_path, 1, 2)
    with (
        InProcessExecutor(max_attempts=1).pool(Raising, str(tmp_path), False, jobs_at_once=3) as pool,
        pytest.raises(JobError, match=r"^job 2 was tried 1 time;"),
    ):
        list(pool.map([Number(i) for i in range(6)]))
    queue = MapJobs([Number(i) for i in range(6)], max_attempts=1)
    assert [ticket.job for ticket in queue.take(3)] == [Number(0), Number(1), Number(2)]
    with pytest.raises(JobError, match=r"^one of the jobs 0, 1, 2, 3 and 1 more was tried 1 time; the last time it"):
        queue.failed(range(5), "it was unlucky", None)


def test_worker_has_one_thread_despite_settings_of_its_libraries(executor: Executor) -> None:
    with executor.pool(Threads) as pool:
        assert dict(pool.map([Number(i) for i in range(3)])) == {0: 1, 1: 1, 2: 1}


def test_errors_of_this_project_are_raised_unchanged_without_retries(executor: Executor, tmp_path: Path) -> None:
    with (
        executor.pool(Damaged, 3, str(tmp_path), jobs_at_once=2) as pool,
        pytest.raises(DamagedDataError, match=r"^shard-00007 is damaged$"),
    ):
        list(pool.map([Number(i) for i in range(6)]))
    assert len(list(tmp_path.iterdir())) == 1


def test_task_gives_its_updates_in_order_and_its_result(executor: Executor) -> None:
    seen: list[Update] = []
    result = executor.run(counting_task, 5, resources=Resources(), on_update=seen.append)
    assert result == "counted to 5"
    assert [update.done for update in seen] == [1, 2, 3, 4, 5]


def test_error_of_a_task_is_raised_in_the_driver(executor: Executor) -> None:
    with pytest.raises((JobError, ZeroDivisionError), match="the loss divided by zero"):
        executor.run(failing_task, resources=Resources(), on_update=lambda _: None)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_another_worker_runs_the_jobs_of_a_killed_one(tmp_path: Path, workers: int) -> None:
    leave_faults(tmp_path, 2)
    with no_copies(), ray_executor(workers).pool(Dying, 5, str(tmp_path), jobs_at_once=4) as pool:
        assert squares_of(pool, 12, tmp_path)
        assert pool.retries >= 2
    assert not list(tmp_path.glob("fault-*"))


@pytest.mark.usefixtures("local_ray")
def test_job_that_kills_every_worker_is_named_with_the_log(tmp_path: Path) -> None:
    leave_faults(tmp_path, 9)
    with (
        no_copies(),
        ray_executor(2).pool(Dying, 5, str(tmp_path), jobs_at_once=1) as pool,
        pytest.raises(JobError, match=r"^job 5 was tried 3 times; the last time its worker died") as caught,
    ):
        list(arriving(pool.map([Number(i) for i in range(12)]), tmp_path))
    assert log_exists(str(caught.value))
    assert str(caught.value).endswith("To resume, run the same command again."), "the cause may have been the machine"
    assert len(list(tmp_path.glob("fault-*"))) == 6, "one fault per try"


@pytest.mark.usefixtures("local_ray")
def test_last_try_of_a_job_waits_until_its_worker_is_known_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy or distant machine reports the death of a worker late. Until then, the worker is only unreachable."""
    unreachable: list[Any] = []
    listen_to_all = listening.listen_to_all

    def listen_late(*waitables: Any, **how: Any) -> dict[Any, Any]:
        answers = listen_to_all(*waitables, **how)
        for reference, answer in answers.items():
            if isinstance(answer, RayActorError) and len(unreachable) < 4:  # one look per second
                unreachable.append(reference)
                answers[reference] = ActorUnavailableError("the connection was reset", None)
        return answers

    monkeypatch.setattr(listening, "listen_to_all", listen_late)
    leave_faults(tmp_path, 9)
    with (
        no_copies(),
        pytest.MonkeyPatch.context() as patch,
        ray_executor(2, max_attempts=1).pool(Dying, 5, str(tmp_path), jobs_at_once=1) as pool,
        pytest.raises(JobError, match=r"^job 5 was tried 1 time; the last time "),
    ):
        patch.setattr(scheduler_module, "_UNREACHABLE_S", 0.0)
        patch.setattr(node_watch, "REPORT_S", 1e9)  # however long Ray takes to notice the death
        list(arriving(pool.map([Number(i) for i in range(12)]), tmp_path))
    assert len(unreachable) == 4
    assert len(list(tmp_path.glob("fault-*"))) == 8, "one fault per try"


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("how", "workers"), [("asleep", 1), ("asleep", 2), ("stopped", 2)])
def test_another_worker_runs_the_jobs_of_a_hanging_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, workers: int
) -> None:
    """A second worker runs them long before the first one is replaced."""
    leave_faults(tmp_path, 1)
    caplog.set_level("INFO")
    with ExitStack() as stack:
        if workers == 1:
            stack.enter_context(hanging_counts_as_silent(tmp_path))
        pool = stack.enter_context(ray_executor(workers).pool(Hanging, 5, str(tmp_path), how, jobs_at_once=4))
        assert squares_of(pool, 12)
        assert (pool.retries if workers == 1 else pool.copies) >= 1
    (pid,) = hung_processes(tmp_path)
    said = "try 1 of 3: its worker hung" if workers == 1 else "jobs are also run elsewhere: no answer"
    assert re.search(rf"{said}.*log: \S+{pid}.err .*, pid {pid}", caplog.text)
    assert ends(pid)


@pytest.mark.usefixtures("local_ray")
def test_worker_that_hangs_after_its_results_is_replaced_for_the_next_call(tmp_path: Path) -> None:
    leave_faults(tmp_path, 1)
    with (
        hanging_counts_as_silent(tmp_path),
        ray_executor(1).pool(Hanging, 5, str(tmp_path), "at the end", jobs_at_once=4) as pool,
    ):
        assert squares_of(pool, 4)
        wait_until(lambda: bool(hung_processes(tmp_path)))  # it takes no more jobs
        assert squares_of(pool, 4)
        assert pool.retries == 4, "the jobs of the second call, which the hanging worker never began"
    assert not list(tmp_path.glob("fault-*"))


@pytest.mark.usefixtures("local_ray")
def test_job_that_makes_every_worker_hang_is_named_with_the_log(tmp_path: Path) -> None:
    leave_faults(tmp_path, 9)
    with (
        no_copies(),
        hanging_counts_as_silent(tmp_path),
        ray_executor(2, max_attempts=2).pool(Hanging, 5, str(tmp_path), "asleep", jobs_at_once=4) as pool,
        pytest.raises(JobError, match=r"^job 5 was tried 2 times; the last time its worker hung: it gave") as caught,
    ):
        list(pool.map([Number(i) for i in range(12)]))
    assert log_exists(str(caught.value))
    assert len(list(tmp_path.glob("fault-*"))) == 7, "one fault per try"
    hung = hung_processes(tmp_path)
    assert len(hung) == 2
    assert all(ends(pid) for pid in hung), "also the one whose job ended the map"


@pytest.mark.usefixtures("local_ray")
def test_worker_with_regular_results_is_not_replaced_in_a_long_call(tmp_path: Path) -> None:
    with ray_executor(1).pool(Paced, str(tmp_path), jobs_at_once=100) as pool:
        for _ in arriving(pool.map([Number(i) for i in range(8)]), tmp_path):
            pool._clock += 600.0  # type: ignore[attr-defined]  # a worker may be silent for 900 s
        assert pool.retries == 0


@pytest.mark.usefixtures("local_ray")
def test_worker_that_waits_for_a_node_is_not_replaced(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The local Ray has four CPUs: the fifth worker waits for a CPU until the end."""
    with no_copies(), ray_executor(5).pool(Squares, str(tmp_path)) as pool:
        assert squares_of(pool, 8)
        pool._clock += 1e6  # type: ignore[attr-defined]
        up = [worker for worker in pool._workers if worker.identity is not None]  # type: ignore[attr-defined]
        assert len(up) < 5
        for worker in up:
            worker.heard_at = pool._clock  # type: ignore[attr-defined]
        assert squares_of(pool, 8)
        assert pool.retries == 0
    assert "replaced" not in caplog.text


@pytest.mark.usefixtures("local_ray")
def test_idle_worker_copies_a_slow_workers_job_and_the_first_result_counts(tmp_path: Path) -> None:
    def slow() -> set[int]:
        return {int((tmp_path / "slow").read_text())} if (tmp_path / "slow-began").exists() else set()

    with (
        no_copies(),
        hanging_counts_as_silent(
            slow, for_s=1e15
        ),  # more than a slow worker is allowed, less than the timeout of a hanging one
        ray_executor(3, timeout_s=1e18).pool(OneSlow, str(tmp_path), 0.02, math.inf) as pool,
    ):
        assert squares_of(pool, 30)
        assert (pool.copies, pool.retries) == (1, 0)
        assert squares_of(pool, 30), "the slow worker gets no jobs"
    begun = Counter(int(path.name.split("-")[1]) for path in tmp_path.glob("begun-*"))
    assert sum(begun.values()) == 61


@pytest.mark.usefixtures("local_ray")
def test_waiting_jobs_of_a_slow_worker_move_to_idle_ones(tmp_path: Path) -> None:
    """It finishes its started job after all other jobs are done, so the idle workers must take its waiting jobs."""
    with no_copies(), ray_executor(3).pool(OneSlow, str(tmp_path), 0.01, math.inf) as pool:
        results = []
        for result in pool.map([Number(i) for i in range(200)]):
            results.append(result)
            if len(results) == 199:
                (tmp_path / "go").touch()
    assert sorted(results) == [(i, i * i) for i in range(200)]
    assert len(list(tmp_path.glob("begun-*"))) == 200, "each once"


@pytest.mark.usefixtures("local_ray")
def test_many_workers_batch_their_results_and_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = []
    take_results = WorkerHandle.take_results

    def counted(worker: WorkerHandle, answer: bytes) -> Any:
        results = take_results(worker, answer)
        answers.append(len(results))
        return results

    monkeypatch.setattr(WorkerHandle, "take_results", counted)
    leave_faults(tmp_path, 2)
    # Results wait until a worker runs out of jobs, even on a slow machine.
    patient = patched_to_many(True, batching_delay_s=300.0)
    with patient, ray_executor(3).pool(OneSlow, str(tmp_path), 0.01, 1.0, jobs_at_once=8) as pool:
        assert squares_of(pool, 400)
        assert squares_of(pool, 400)
    assert len(list(tmp_path.glob("begun-*"))) == 800
    # If the driver is short of CPU, workers run out of jobs more often.
    assert sum(answers) == 800 and len(answers) < 400
    with patched_to_many(True), ray_executor(3).pool(Dying, 5, str(tmp_path), jobs_at_once=4) as pool:
        assert squares_of(pool, 200, tmp_path)
        assert pool.retries >= 2
    assert not list(tmp_path.glob("fault-*"))


@pytest.mark.usefixtures("local_ray")
def test_error_of_a_job_names_the_log_with_the_traceback(tmp_path: Path) -> None:
    leave_faults(tmp_path, 9, 3)
    with (
        ray_executor(1).pool(Raising, str(tmp_path), False, jobs_at_once=1) as pool,
        pytest.raises(JobError) as caught,
    ):
        list(pool.map([Number(3)]))
    (log,) = re.findall(r"log: (\S+\.err)", str(caught.value))
    assert re.search(r"Traceback(?s:.*)toys\.py(?s:.*)divided by zero", Path(log).read_text())


def log_exists(message: str) -> bool:
    found = re.search(r"log: (\S+\.err)", message)
    return found is not None and Path(found[1]).is_file()


def ends(pid: int) -> bool:
    """Whether a process ends within ten minutes: Ray needs seconds to end an unresponsive one."""
    for _ in range(6000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
