"""Numbers of threads; they are refused if torch would hang."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info

from pipeline.base.errors import ConfigError
from pipeline.base.threads import num_threads


def test_number_of_threads_is_set_and_restored() -> None:
    before = torch.get_num_threads()
    with num_threads(3):
        assert torch.get_num_threads() == 3
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} <= {3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("limit", "refused"), [("", False), ("1", True), ("2", True), ("3", False), ("99", False)])
def test_more_threads_than_the_environment_allows_are_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, refused: bool
) -> None:
    monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
    if not refused:
        with num_threads(3):
            return
    with (
        pytest.raises(ConfigError, match=rf"OMP_THREAD_LIMIT={limit} allows fewer threads than the 3 "),
        num_threads(3),
    ):
        raise AssertionError("something is computed")
