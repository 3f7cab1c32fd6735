"""Base of the sections of a config, and the kinds of their keys."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["identity", "growable", "runtime"]


def growable(default: Any, **constraints: Any) -> Any:
    """Define a field that may only grow on an existing run."""
    return Field(default, json_schema_extra={"kind": "growable"}, **constraints)


def runtime(default: Any, **constraints: Any) -> Any:
    """Define a field that no result depends on."""
    return Field(default, json_schema_extra={"kind": "runtime"}, **constraints)


class Section(BaseModel):
    """Base of every section: unknown keys and loose types are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
