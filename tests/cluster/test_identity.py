"""Workers whose results must not be mixed with the driver's."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from actors.identity import WorkerIdentity
from pipeline.errors import ConfigError

THIS = WorkerIdentity.of_this_process()


def test_a_worker_like_the_driver_is_welcome() -> None:
    THIS.check(exact=True)


@pytest.mark.parametrize("exact", [True, False])
def test_other_code_is_always_refused(exact: bool) -> None:
    with pytest.raises(ConfigError, match="runs code version 0ther"):
        replace(THIS, code_version="0ther").check(exact=exact)


def test_the_cpu_beside_a_gpu_is_no_matter() -> None:
    replace(THIS, cpu_kind="a quantum computer").check(exact=True, on_gpu=True)
    with pytest.raises(ConfigError, match="torch"):
        replace(THIS, versions={**THIS.versions, "torch": "0.1"}).check(exact=True, on_gpu=True)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(THIS, cpu_kind="a quantum computer"), "a quantum computer"),
        (replace(THIS, versions={**THIS.versions, "torch": "0.1"}), "torch: .* -> '0.1'"),
    ],
)
def test_another_cpu_or_library_is_refused_unless_told(
    other: WorkerIdentity, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=said):
        other.check(exact=True)
    with caplog.at_level(logging.WARNING):
        other.check(exact=False)
    assert "accepted, as execution.exact is false" in caplog.text
