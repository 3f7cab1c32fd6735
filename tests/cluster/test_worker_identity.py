"""The check that refuses workers with other code, libraries or CPU than the driver."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.executor import RayExecutor
from actors.worker_identity import WorkerIdentity
from pipeline.base.errors import ConfigError
from pipeline.config.schema import ExecutionConfig
from pipeline.execution.protocol import Resources
from tests.cluster.many_nodes import ManyNodes
from tests.cluster.toys import Number, Squares, noting_task
from tests.e2e.command import ROOT

THIS = WorkerIdentity.of_this_process()

# Ray puts the driver's folders first on its workers' path; on another machine, they may hold other sources.
FINDS_OTHER_SOURCES = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("pipeline", "actors"):
            return PathFinder.find_spec(name, [str(Path(__file__).parent / "sources")])


sys.meta_path.insert(0, Finder)
"""


def test_worker_identical_to_the_driver_is_accepted() -> None:
    THIS.check(THIS, exact=True)


@pytest.mark.parametrize("exact", [True, False])
def test_worker_with_other_code_is_always_refused(exact: bool) -> None:
    with pytest.raises(ConfigError, match="runs code version 0ther"):
        replace(THIS, code_version="0ther").check(THIS, exact=exact)


def test_cpu_model_is_ignored_for_workers_on_a_gpu() -> None:
    replace(THIS, cpu_kind="a quantum computer").check(THIS, exact=True, on_gpu=True)
    with pytest.raises(ConfigError, match="torch"):
        replace(THIS, versions={**THIS.versions, "torch": "0.1"}).check(THIS, exact=True, on_gpu=True)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(THIS, cpu_kind="a quantum computer"), "a quantum computer"),
        (replace(THIS, versions={**THIS.versions, "torch": "0.1"}), 'torch: .* -> "0.1"'),
    ],
)
def test_another_cpu_or_library_is_refused_by_default(
    other: WorkerIdentity, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=said):
        other.check(THIS, exact=True)
    with caplog.at_level(logging.WARNING):
        other.check(THIS, exact=False)
    assert "accepted, as execution.exact is false" in caplog.text


def work_with_other_sources(folder: Path) -> list[str]:
    """The error messages for a pool's worker and for a task, although results need not be exact."""
    executor = RayExecutor(ExecutionConfig(exact=False, workers=1))
    said = []
    with pytest.raises(ConfigError) as refused, executor.pool(Squares, str(folder)) as pool:
        list(pool.map([Number(1)]))
    said.append(str(refused.value))
    with pytest.raises(ConfigError) as refused:
        executor.run(noting_task, str(folder), resources=Resources(), on_update=lambda _: None)
    said.append(str(refused.value))
    return said


def test_node_with_other_sources_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    for package in ("pipeline", "actors"):
        shutil.copytree(ROOT / package, tmp_path / "sources" / package)
    with (tmp_path / "sources/pipeline/base/seeding.py").open("a") as file:
        file.write("# one line more\n")
    (tmp_path / "sitecustomize.py").write_text(FINDS_OTHER_SOURCES)
    done = tmp_path / "done"
    done.mkdir()
    with ManyNodes(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)}) as cluster:
        said = cluster.in_driver(work_with_other_sources, done)
    assert len(said) == 2
    for message in said:
        assert re.search(
            rf"runs code version (?!{THIS.code_version})\w+, the driver runs {THIS.code_version}: ", message
        )
    assert not list(done.iterdir())
