"""The run directory as a user names it: a path, or the URL of a prefix in a bucket."""

from __future__ import annotations

import os
import posixpath
from functools import cache
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.storage.local import LocalStore
from pipeline.storage.pretrained import PRETRAINED, open_pretrained
from pipeline.storage.s3 import S3Store
from pipeline.storage.store import Store

_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "hdfs", "file", "http", "https", "hf"})


def as_run_dir(text: str) -> str:
    """Run directory from user input, with ``~`` expanded.

    Args:
        text: Path or URL.

    Raises:
        ConfigError: The text resembles a URL but is not valid, or names an unknown home directory.
    """
    scheme, colon, rest = text.partition(":")
    if "://" in text:
        return text
    if colon and (rest.startswith("/") or scheme.lower() in _SCHEMES) and len(scheme) > 1 and scheme.isalnum():
        url = f"{scheme.lower()}://{rest.lstrip('/')}"
        raise ConfigError(
            f"{text} looks like a URL but is not valid. Did you mean {url}? For a folder of that name use ./{text}"
        )
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{text}: there is no such home directory; for a folder of that name use ./{text}") from error


def open_store(run_dir: str) -> Store:
    """Open the store of a run directory.

    Args:
        run_dir: Path, ``s3://bucket/prefix``, or ``pretrained:NAME``.

    Raises:
        ConfigError: There is no agent of this name, the URL is invalid, its scheme is not supported, or the path is a
            file.
    """
    if run_dir.startswith(PRETRAINED):
        return open_pretrained(run_dir.removeprefix(PRETRAINED))
    scheme, separator, _ = run_dir.partition("://")
    if scheme == "s3" and separator:
        return S3Store(run_dir)
    if separator:
        raise ConfigError(
            f"--run-dir {run_dir}: {scheme}:// is not supported; use a path to a local folder or s3://bucket/prefix"
        )
    if Path(run_dir).exists() and not Path(run_dir).is_dir():
        raise ConfigError(f"{run_dir} is not a folder: choose a folder, new or existing, or s3://bucket/prefix")
    return LocalStore(run_dir)


def require_writable(run_dir: str) -> None:
    """Refuse an agent that comes with this package as a place to write.

    Args:
        run_dir: Path, ``s3://bucket/prefix``, or ``pretrained:NAME``.

    Raises:
        ConfigError: It is ``pretrained:NAME``; the message says how to copy the agent.
    """
    if run_dir.startswith(PRETRAINED):
        raise ConfigError(open_pretrained(run_dir.removeprefix(PRETRAINED)).refusal)


def absolute_location(run_dir: str) -> str:
    """Location of a run that means the same in any working directory: URLs and names as they are.

    Args:
        run_dir: Path, ``s3://bucket/prefix``, or ``pretrained:NAME``.

    Raises:
        ConfigError: As for ``as_run_dir``.
    """
    location = as_run_dir(run_dir)
    return location if "://" in location or location.startswith(PRETRAINED) else str(Path(location).absolute())


@cache
def open_other(run_dir: str) -> Store:
    """Open the store of another run, for reading; each is opened once in a process. Errors as for ``open_store``."""
    return open_store(run_dir)


def relative_run(run_dir: str, other: str) -> str:
    """Location of another run as a run records it: relative if both lie in folders, or both in one bucket.

    Two runs that are moved together therefore still find each other.

    Args:
        run_dir: Location of the run, as ``Store.locate()`` returns it.
        other: Location of the other run, likewise.
    """
    bucket, other_bucket = _bucket(run_dir), _bucket(other)
    if bucket != other_bucket:
        return other
    if not bucket:  # not the text of the paths: folders may be reached through links
        return os.path.relpath(os.path.realpath(other), os.path.realpath(run_dir))
    return posixpath.relpath(other.removeprefix(bucket) or "/", run_dir.removeprefix(bucket) or "/")


def absolute_run(run_dir: str, recorded: str) -> str:
    """Location of another run, as recorded by ``relative_run``.

    Args:
        run_dir: Location of the run that recorded it, as ``Store.locate()`` returns it.
        recorded: Relative or absolute location of the other run.
    """
    if "://" in recorded or recorded.startswith("/"):
        return recorded
    bucket = _bucket(run_dir)
    if not bucket:
        return os.path.realpath(posixpath.join(os.path.realpath(run_dir), recorded))
    path = posixpath.normpath(posixpath.join(run_dir.removeprefix(bucket) or "/", recorded))
    return (bucket + path).rstrip("/")


def _bucket(run_dir: str) -> str:
    """The part ``s3://bucket`` of a URL; empty for a path."""
    scheme, separator, rest = run_dir.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator else ""


def check_lasting(run_dir: str, option: str = "--run-dir") -> None:
    """Refuse a run directory inside a job's copy of the sources, which is deleted after the job.

    Args:
        run_dir: Path, or ``s3://bucket/prefix``.
        option: Option of the command line that names it.

    Raises:
        ConfigError: The run directory is a relative path.
    """
    if isinstance(open_store(run_dir), LocalStore) and not Path(run_dir).is_absolute():
        raise ConfigError(
            f"{option} {run_dir}: on a cluster this must be s3://bucket/prefix, or the absolute path of a folder that "
            "all nodes share: a relative path is lost with the job's copy of the sources"
        )
