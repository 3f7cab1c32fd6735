"""Packages of the extras: imported where they are needed, and named with their command where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from pipeline.base.errors import ConfigError


def import_extra(module: str, extra: str, needed_by: str) -> ModuleType:
    """Import a package of an extra.

    Args:
        module: Module to import.
        extra: Extra of this project that installs it.
        needed_by: Feature that needs the module, for the message.

    Raises:
        ConfigError: It cannot be imported; names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, extra, needed_by, str(error)) from error


def require_extra(module: str, extra: str, needed_by: str) -> None:
    """Check that a package of an extra is installed, without importing it, which takes some of them seconds.

    Args:
        module: Top-level module.
        extra: See ``import_extra``.
        needed_by: See ``import_extra``.

    Raises:
        ConfigError: See ``import_extra``.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra, needed_by, "it is not installed")


def _missing(module: str, extra: str, needed_by: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{needed_by} needs the package {module.partition('.')[0]}, which cannot be imported here ({problem}). Install "
        f"it, on a cluster on every node: pip install 'world-models-ray[{extra}]'"
    )
