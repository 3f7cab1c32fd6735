"""The executor's contract, on both executors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.executor import RayExecutor
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DamagedDataError, JobError
from pipeline.executor import Executor, InProcessExecutor, Resources
from pipeline.progress import Update
from tests.cluster.toys import Dying, Failing, Number, Squares, counting_task, dying_task, failing_task


def ray_executor(workers: int) -> RayExecutor:
    return RayExecutor(RunConfig.model_validate({"execution": {"workers": workers, "max_attempts": 3}}))


@pytest.fixture(params=["in-process", "ray-1", "ray-3"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "in-process":
        yield InProcessExecutor()
        return
    request.getfixturevalue("local_ray")
    made = ray_executor(int(request.param[-1]))
    yield made
    made.close()


@pytest.mark.parametrize("jobs_per_call", [1, 4, 100])
def test_each_job_runs_once_and_its_result_is_under_its_id(
    executor: Executor, tmp_path: Path, jobs_per_call: int
) -> None:
    jobs = [Number(i) for i in range(17)]
    with executor.pool(Squares, str(tmp_path), jobs_per_call=jobs_per_call) as pool:
        results = list(pool.map(jobs))
    assert sorted(results) == [(i, i * i) for i in range(17)]
    ran = sorted(int(path.name.split("-")[0]) for path in tmp_path.iterdir())
    assert ran == list(range(17))


def test_a_pool_takes_several_calls(executor: Executor, tmp_path: Path) -> None:
    with executor.pool(Squares, str(tmp_path), jobs_per_call=2) as pool:
        for first in (0, 10, 20):
            assert dict(pool.map([Number(first), Number(first + 1), Number(first + 2)])) == {
                i: i * i for i in range(first, first + 3)
            }
        assert list(pool.map([])) == []


def test_a_job_that_raises_ends_the_call_with_its_name_and_cause(executor: Executor) -> None:
    with (
        executor.pool(Failing, 3, "theirs", jobs_per_call=1) as pool,
        pytest.raises(JobError, match=r"\[3\].*divided by zero"),
    ):
        list(pool.map([Number(i) for i in range(6)]))


def test_an_error_of_ours_comes_back_as_it_is(executor: Executor) -> None:
    with (
        executor.pool(Failing, 3, "ours", jobs_per_call=2) as pool,
        pytest.raises(DamagedDataError, match=r"^shard-00007 is damaged$"),
    ):
        list(pool.map([Number(i) for i in range(6)]))


def test_a_task_gives_its_updates_in_order_and_its_result(executor: Executor) -> None:
    seen: list[Update] = []
    result = executor.run(counting_task, 5, resources=Resources(), on_update=seen.append)
    assert result == "counted to 5"
    assert [update.done for update in seen] == [1, 2, 3, 4, 5]


def test_a_task_that_raises_raises_here(executor: Executor) -> None:
    with pytest.raises((JobError, ZeroDivisionError), match="the loss divided by zero"):
        executor.run(failing_task, resources=Resources(), on_update=lambda _: None)


def _lives(folder: Path, count: int) -> None:
    for life in range(count):
        (folder / f"life-{life}").touch()


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_of_a_killed_worker_are_done_by_another(tmp_path: Path, workers: int) -> None:
    _lives(tmp_path, 2)
    executor = ray_executor(workers)
    with executor.pool(Dying, 5, str(tmp_path), jobs_per_call=4) as pool:
        results = list(pool.map([Number(i) for i in range(12)]))
        assert sorted(results) == [(i, i * i) for i in range(12)]
        assert pool.retries >= 2  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("local_ray")
def test_a_job_that_kills_every_worker_is_named_with_the_log(tmp_path: Path) -> None:
    _lives(tmp_path, 9)
    executor = ray_executor(2)
    with (
        executor.pool(Dying, 5, str(tmp_path), jobs_per_call=1) as pool,
        pytest.raises(JobError, match=r"job 5 was tried 3 times") as caught,
    ):
        list(pool.map([Number(i) for i in range(12)]))
    assert _log_exists(str(caught.value))
    assert len(list(tmp_path.iterdir())) == 6, "one life a try"


@pytest.mark.usefixtures("local_ray")
def test_the_error_of_a_job_says_where_the_log_lies() -> None:
    executor = ray_executor(1)
    with executor.pool(Failing, 3, "theirs", jobs_per_call=1) as pool, pytest.raises(JobError) as caught:
        list(pool.map([Number(3)]))
    assert _log_exists(str(caught.value))


@pytest.mark.usefixtures("local_ray")
def test_a_task_whose_worker_is_killed_is_begun_again(tmp_path: Path) -> None:
    _lives(tmp_path, 2)
    begun = ray_executor(1).run(dying_task, str(tmp_path), resources=Resources(), on_update=lambda _: None)
    assert begun == 3


@pytest.mark.usefixtures("local_ray")
def test_a_task_that_kills_every_worker_fails_with_the_log(tmp_path: Path) -> None:
    _lives(tmp_path, 9)
    with pytest.raises(JobError, match=r"its worker died 3 times.*log") as caught:
        ray_executor(1).run(dying_task, str(tmp_path), resources=Resources(), on_update=lambda _: None)
    assert _log_exists(str(caught.value))


@pytest.mark.usefixtures("local_ray")
def test_more_threads_than_any_node_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 CPUs on one node, and the largest node has 4"):
        RayExecutor(RunConfig.model_validate({"vae": {"threads": 64}}))


def _log_exists(message: str) -> bool:
    found = re.search(r"log: (\S+\.err)", message)
    return found is not None and Path(found[1]).is_file()
