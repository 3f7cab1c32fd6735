"""What makes a run the same run: config keys by kind, code version, kind of CPU, library versions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.base.errors import ConfigError
from pipeline.config.schema import Kind, RunConfig

# Libraries that bits depend on.
_LIBRARIES = (
    "torch", "numpy", "gymnasium", "box2d", "cma", "pyarrow", "ray", "opencv-python-headless", "openvino",
    "safetensors", "pillow", "av",
)  # fmt: skip


def flatten(config: BaseModel, kind: Kind, sections: Iterable[str] | None = None) -> dict[str, Any]:
    """Dotted key to value, of the keys of one kind, optionally only below some dotted prefixes."""
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
    """One line per key that differs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            lines.append(f"  {key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}")
    return lines


def shrunk(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per growable key that became smaller; None is without limit."""

    def below(a: Any, b: Any) -> bool:
        return a is not None and (b is None or a < b)

    return [f"  {key}: {old[key]!r} -> {new[key]!r}" for key in sorted(old) if key in new and below(new[key], old[key])]


def check_same_run(old: RunConfig, new: RunConfig, where: str) -> None:
    """Refuse to go on with a run under another identity, or with less than it has.

    Raises:
        ConfigError: with the difference, key by key.
    """
    lines = diff(flatten(old, "identity"), flatten(new, "identity"))
    if lines:
        raise ConfigError(
            f"{where} holds a run of another config. These keys decide its results and cannot change:\n"
            + "\n".join(lines)
            + "\nGo on with the old values, or choose another --run-dir."
        )
    lines = shrunk(flatten(old, "growable"), flatten(new, "growable"))
    if lines:
        raise ConfigError(
            f"{where} holds a run that was to go further. These keys may only grow:\n"
            + "\n".join(lines)
            + "\nGo on with the old values or larger ones, or choose another --run-dir."
        )


@cache
def code_version() -> str:
    """SHA-256 (12 hex digits) over the sources that results come from."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(p for package in ("pipeline", "actors") for p in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def cpu_info() -> dict[str, str]:
    """What Linux says of the first core; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return {}
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


@cache
def cpu_kind() -> str:
    """The kind of CPU, as far as bits depend on it: model name and vector instructions."""
    fields = cpu_info()
    name = fields.get("model name", platform.processor() or platform.machine())
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = " ".join(flag for flag in wanted if flag in fields.get("flags", "").split())
    return f"{platform.machine()} {name} [{flags}]" if flags else f"{platform.machine()} {name}"


@cache
def library_versions() -> Mapping[str, str]:
    """Versions of Python and of the libraries that bits depend on."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(
            importlib.metadata.PackageNotFoundError
        ):  # rollouts.engine=torch does without OpenVINO
            versions[library] = importlib.metadata.version(library)
    return versions
