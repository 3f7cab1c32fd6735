"""Identity of a run: config keys by kind, code version, kind of CPU, library versions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.config.section import Kind

# Libraries that affect results bit for bit.
_LIBRARIES = (
    "torch", "numpy", "gymnasium", "box2d", "cma", "pyarrow", "ray", "opencv-python-headless", "openvino",
    "safetensors", "pillow", "av",
)  # fmt: skip


def flatten(config: BaseModel, kind: Kind, sections: Iterable[str] | None = None) -> dict[str, Any]:
    """Map the dotted keys of one kind to their values, optionally only below some dotted prefixes."""
    keys = dict(_walk(config, kind, ""))
    if sections is None:
        return keys
    wanted = tuple(sections)
    return {k: v for k, v in keys.items() if any(k == s or k.startswith(f"{s}.") for s in wanted)}


def _walk(model: BaseModel, kind: Kind, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, kind, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra
        if (extra.get("kind", "identity") if isinstance(extra, dict) else "identity") == kind:
            if isinstance(value, list):
                value = [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
            yield prefix + name, value


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe each key that differs, one line each."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            lines.append(f"  {key}: {_shown(old, key)} -> {_shown(new, key)}")
    return lines


def _shown(values: Mapping[str, Any], key: str) -> str:
    """Value of a key as in YAML."""
    return json.dumps(values[key]) if key in values else "(absent)"


def shrunk(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe each growable key that became smaller, one line each; None means no limit."""

    def below(a: Any, b: Any) -> bool:
        return a is not None and (b is None or a < b)

    smaller = [key for key in sorted(old) if key in new and below(new[key], old[key])]
    return [f"  {key}: {_shown(old, key)} -> {_shown(new, key)}" for key in smaller]


def check_same_run(old: RunConfig, new: RunConfig, where: str) -> None:
    """Refuse to resume a run with another identity or with smaller growable keys.

    Raises:
        ConfigError: The configs differ. The message lists the difference, key by key.
    """

    def keys(config: RunConfig, kind: Kind) -> dict[str, Any]:
        found = flatten(config, kind)
        if old.rounds.count > 1:
            return found
        # The keys of later rounds have decided nothing yet.
        return {key: value for key, value in found.items() if key == "rounds.count" or not key.startswith("rounds.")}

    lines = diff(keys(old, "identity"), keys(new, "identity"))
    if lines:
        raise ConfigError(
            f"{where} holds a run of another config. These keys decide its results and cannot change:\n"
            + "\n".join(lines)
            + "\nUse the old values, or choose another --run-dir."
        )
    lines = shrunk(keys(old, "growable"), keys(new, "growable"))
    if lines:
        raise ConfigError(
            f"{where} holds a run with larger limits. These keys may only grow:\n"
            + "\n".join(lines)
            + "\nUse the old values or larger ones, or choose another --run-dir."
        )


def refuse_other_identity(saved: RunConfig, config: RunConfig, free: Iterable[str], command: str) -> None:
    """Refuse overrides of keys that describe an existing run, for a command that builds on it.

    Args:
        saved: Config of the run.
        config: The same with overrides.
        free: Sections that the command may change.
        command: Name of the command.

    Raises:
        ConfigError: Other keys differ; names them.
    """
    sections = tuple(f"{section}." for section in free)

    def fixed(each: RunConfig) -> dict[str, Any]:
        return {key: value for key, value in flatten(each, "identity").items() if not key.startswith(sections)}

    if lines := diff(fixed(saved), fixed(config)):
        allowed = f"keys of {', '.join(free)} and " if free else ""
        raise ConfigError(
            f"{command} keeps the run's values of these keys:\n"
            + "\n".join(lines)
            + f"\nWith -o, only {allowed}runtime keys can be set."
        )


@cache
def code_version() -> str:
    """SHA-256 (12 hex digits) over the sources that produce results."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(p for package in ("pipeline", "actors") for p in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def cpu_info() -> dict[str, str]:
    """Fields of ``/proc/cpuinfo`` for the first core; empty on systems other than Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return {}
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


@cache
def cpu_kind() -> str:
    """Kind of CPU, as far as it affects results bit for bit: model name and vector instructions."""
    fields = cpu_info()
    name = fields.get("model name", platform.processor() or platform.machine())
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = " ".join(flag for flag in wanted if flag in fields.get("flags", "").split())
    return f"{platform.machine()} {name} [{flags}]" if flags else f"{platform.machine()} {name}"


def this_machine() -> dict[str, Any]:
    """Facts about this machine that affect results bit for bit: ``cpu``, ``code_version`` and ``versions``."""
    return {"cpu": cpu_kind(), "code_version": code_version(), "versions": library_versions()}


@cache
def library_versions() -> Mapping[str, str]:
    """Versions of Python and of the libraries that affect results bit for bit."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(
            importlib.metadata.PackageNotFoundError
        ):  # rollouts.engine=torch does not need OpenVINO
            versions[library] = importlib.metadata.version(library)
    return versions
