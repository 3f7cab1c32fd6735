"""The identity of a run: keys that must not change, and the code version."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.base.errors import ConfigError
from pipeline.config.identity import check_same_run, code_version, cpu_kind, diff, flatten, library_versions, shrunk
from pipeline.config.schema import RunConfig
from pipeline.stages.table import STAGES, stages_of
from tests.counting import counting_config

OLD = counting_config()


def every_key(model: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from every_key(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def refused(overrides: dict[str, Any], old: RunConfig = OLD) -> str:
    with pytest.raises(ConfigError) as error:
        check_same_run(old, counting_config(overrides), "runs/x")
    assert error.value.exit_code == 2
    assert "runs/x" in str(error.value)
    return str(error.value)


def test_every_key_is_of_exactly_one_kind() -> None:
    kinds = [flatten(OLD, kind) for kind in ("identity", "growable", "runtime")]
    keys = [key for kind in kinds for key in kind]
    assert sorted(keys) == sorted(every_key(OLD))


def test_growable_and_runtime_keys_match_the_list() -> None:
    assert set(flatten(OLD, "growable")) == {
        "evolve.generations", "evolve.target_return", "evaluate.episodes", "rounds.count", "rounds.generations"
    }  # fmt: skip
    runtime = set(flatten(OLD, "runtime"))
    assert {"execution.workers", "execution.executor", "rollouts.lanes", "evolve.max_seconds", "name"} <= runtime
    for part in ("seed", "threads", "micro_batch", "batch_size", "episodes", "precision", "device", "view"):
        assert not any(key.endswith(part) for key in runtime), f"{part} decides results"


def test_flatten_returns_only_the_requested_sections() -> None:
    assert flatten(OLD, "identity", ("seed", "tracks.training", "encode")) == {
        "seed": 1,
        "tracks.training.start": 1_000_000,
        "tracks.training.stop": 2_000_000_000,
        "encode.batch_size": 4,
    }
    assert flatten(OLD, "identity", ()) == {}
    assert "evolve.sigma" not in flatten(OLD, "identity", ("evol",)), "a section is named whole"


def test_every_section_that_a_stage_names_exists() -> None:
    for stage in STAGES:
        for section in stage.keys:
            named = [flatten(OLD, kind, (section,)) for kind in ("identity", "growable", "runtime")]
            assert any(named), f"{stage.name} names {section}"


def test_every_identity_key_is_sealed_by_some_stage() -> None:
    stages = stages_of(counting_config({"rounds.count": 2}))
    sealed = {key for stage in stages for key in flatten(OLD, "identity", stage.keys)}
    assert set(flatten(OLD, "identity")) == sealed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2),
        ("vae.z_size", 6),
        ("vae.threads", 2),
        ("rollouts.micro_batch", 8),
        ("env.view", "full"),
        ("evolve.stall_steps", 5),
        ("controller.bias", False),
        ("vae.learning_rate", 1.1e-4),
    ],
)
def test_changed_identity_key_is_refused_with_key_and_both_values(key: str, value: Any) -> None:
    old = json.dumps(flatten(OLD, "identity")[key])
    assert f"  {key}: {old} -> {json.dumps(value)}" in refused({key: value})


def test_diff_has_exactly_the_differences() -> None:
    message = refused({"seed": 2, "vae.z_size": 6})
    assert [line for line in message.splitlines() if line.startswith("  ")] == [
        "  seed: 1 -> 2",
        "  vae.z_size: 5 -> 6",
    ]


@pytest.mark.parametrize("overrides", [{"execution.workers": 7, "rollouts.lanes": 64, "name": "other"}, {}])
def test_runtime_keys_may_change(overrides: dict[str, Any]) -> None:
    check_same_run(OLD, counting_config(overrides), "runs/x")


def test_growable_key_may_grow_but_not_shrink() -> None:
    check_same_run(OLD, counting_config({"evolve.generations": 4, "evaluate.episodes": 5}), "runs/x")
    assert "  evolve.generations: 3 -> 2" in refused({"evolve.generations": 2})
    assert "may only grow" in refused({"evaluate.episodes": 3})


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (None, None, True),
        (None, 500.0, False),
        (500.0, None, True),
        (500.0, 500.0, True),
        (500.0, 499.0, False),
        (500.0, 501.0, True),
    ],
)
def test_none_means_no_limit(old: float | None, new: float | None, allowed: bool) -> None:
    assert (shrunk({"k": old}, {"k": new}) == []) == allowed
    before = counting_config({"evolve.target_return": old})
    if allowed:
        check_same_run(before, counting_config({"evolve.target_return": new}), "runs/x")
    else:
        assert "evolve.target_return" in refused({"evolve.target_return": new}, before)


def test_diff_distinguishes_an_absent_key_from_none() -> None:
    assert diff({"a": None}, {"a": None}) == []
    assert diff({"a": None}, {}) == ["  a: null -> (absent)"]
    assert diff({}, {"a": None}) == ["  a: (absent) -> null"]
    assert diff({"b": 1, "a": 1}, {"b": 2, "a": 2}) == ["  a: 1 -> 2", "  b: 1 -> 2"]


def test_code_version_depends_only_on_the_sources(tmp_path: Path) -> None:
    code = "from pipeline.config.identity import code_version; print(code_version())"
    here = Path(__file__).parents[2]
    copy = tmp_path / "copy"
    for package in ("pipeline", "actors"):
        for source in (here / package).rglob("*.py"):
            target = copy / source.relative_to(here)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())

    def version() -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert version() == code_version()
    with (copy / "pipeline" / "base" / "seeding.py").open("a") as file:
        file.write("\n# changed\n")
    assert version() != code_version()


def test_cpu_and_versions_are_named() -> None:
    assert cpu_kind()
    assert set(library_versions()) >= {"python", "torch", "numpy", "cma", "gymnasium", "pyarrow"}
