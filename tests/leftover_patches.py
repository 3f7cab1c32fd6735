"""A check that each test puts back the parts of the program that it replaced.

Otherwise a later test of the same process fails, or passes, because of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType

import pytest

_PACKAGES = ("actors", "cluster", "pipeline")


@pytest.fixture(autouse=True)
def leave_no_patch() -> Iterator[None]:
    """Fail a test after which a constant, class, function or method of the program is another one than before."""
    before = {name: _parts(name) for name in [*sys.modules] if name.split(".")[0] in _PACKAGES}
    yield
    patched = []
    for name, parts in before.items():
        now = _parts(name)
        patched += [f"{name}.{part}" for part in parts if part in now and now[part] is not parts[part]]
    assert not patched, f"the test left these replaced: {', '.join(patched)}"


def _parts(name: str) -> dict[str, object]:
    parts: dict[str, object] = {}
    for key, value in [*vars(sys.modules[name]).items()] if name in sys.modules else ():
        if key.isupper() or isinstance(value, FunctionType | type):
            parts[key] = value
        if isinstance(value, type) and value.__module__ == name:
            parts |= {f"{key}.{each}": method for each, method in vars(value).items() if callable(method)}
    return parts
