"""Differences that an exact run refuses, and others accept with a warning."""

from __future__ import annotations

import logging

import pytest

from pipeline.base.errors import ConfigError
from pipeline.base.exactness import inexact_error, refuse_or_accept


@pytest.mark.parametrize(("difference", "end"), [("this is A, that was B", ": "), ("they differ:\nA, B", "\n")])
def test_difference_is_refused_by_an_exact_run_and_accepted_by_another(
    difference: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_or_accept(difference, "Go back", exact=True)
    assert str(refused.value) == (
        f"{difference}{end}results would not be bit-for-bit the same. Go back, or accept the difference with "
        "-o execution.exact=false"
    )
    with caplog.at_level(logging.WARNING):
        refuse_or_accept(difference, "Go back", exact=False)
    assert f"{difference}{end}accepted, as execution.exact is false" in caplog.text


def test_error_without_a_remedy_offers_to_accept() -> None:
    assert str(inexact_error("A is B")).endswith("the same. Accept the difference with -o execution.exact=false")
