"""The reference of config keys: up to date, and with a description of every key."""

from __future__ import annotations

import re

from pipeline.config.identity import flatten
from pipeline.config.reference import PATH, reference
from pipeline.config.schema import RunConfig


def test_page_matches_the_schema() -> None:
    assert PATH.read_text() == reference(), "run `make docs`"


def test_every_key_has_a_row_with_its_default_its_kind_and_a_meaning() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \| `(.*)` \| (\w+) \| (.*) \|$", reference(), re.MULTILINE)
    found = {key: (kind, default, meaning) for key, _, default, kind, meaning in rows}
    for kind in ("identity", "growable", "runtime"):
        for key, value in flatten(RunConfig(), kind).items():
            assert found[key][0] == kind, key
            assert found[key][1] == (
                "null" if value is None else str(value).lower() if value in (True, False) else str(value)
            )
            assert found[key][2], f"{key} has no description"
    assert len(found) == sum(len(flatten(RunConfig(), kind)) for kind in ("identity", "growable", "runtime"))
