"""Where a run's bytes live: a key-value view of a run directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from pipeline.base.errors import AlreadyExistsError, ConfigError, DamagedDataError, StorageError
from pipeline.base.failpoints import failpoint

# What linking fails with where a file system has no hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})
_CLAIM_S = 10.0  # a claim on a name lasts for two system calls

_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "hdfs", "file", "http", "https", "hf"})


class Store(Protocol):
    """Bytes under slash-separated keys. Every write is atomic: a reader sees all of an object or none of it.

    Stores are small and picklable: workers on other machines get a copy.

    Attributes:
        session: the number of the session that this store writes for (``storage/lease.py``); 0 outside of one.
    """

    @property
    def session(self) -> int:
        """See above."""

    def guarded(self, look: Callable[[], None]) -> Store:
        """The same store, which calls ``look`` before it tries anything once more; what that raises ends the trying."""

    def read(self, key: str) -> bytes:
        """The object's bytes; ``FileNotFoundError`` where there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object."""

    def create(self, key: str, data: bytes) -> None:
        """Create an object; ``AlreadyExistsError`` where the key is taken."""

    def grow(self, key: str, data: bytes, present: int) -> None:
        """Make an object hold ``data``, whose first ``present`` bytes it holds already.

        For views that grow (metrics) and are rewritten from a checkpoint: not atomic where appending is cheaper.
        """

    def delete(self, key: str) -> None:
        """Remove an object; no error where there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with a prefix, sorted."""

    def locate(self, key: str = "") -> str:
        """Where an object lies, in words that a user can paste into a shell."""

    def age_s(self, key: str) -> float:
        """Seconds since the object was last written, by the store's own clock; ``FileNotFoundError`` without one.

        No writer's clock takes part, so machines whose clocks disagree come to the same age.
        """

    def leftovers(self) -> Sequence[str]:
        """What writers that were killed left behind and that is no object, by name."""

    def remove_leftover(self, name: str) -> None:
        """Remove one of ``leftovers``; only while nobody else writes."""


class LocalStore:
    """A folder. Create-only writes are a temporary file, fsync, and a hard link."""

    TEMPORARY = ".tmp"
    session = 0

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def guarded(self, look: Callable[[], None]) -> LocalStore:
        return self  # a disk is asked once

    def read(self, key: str) -> bytes:
        target = self.root / key
        try:
            return target.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{target} does not exist") from error
        except OSError as error:
            damaged = error.errno == errno.EIO  # the disk cannot tell any more what was written
            kind = DamagedDataError if damaged else StorageError
            raise kind(f"cannot read {target}: {error.strerror or error}") from error

    def write(self, key: str, data: bytes) -> None:
        with self._temporary(key, data) as (temporary, target):
            Path(temporary).replace(target)
            _sync_folder(target.parent)

    def create(self, key: str, data: bytes) -> None:
        with self._temporary(key, data) as (temporary, target):
            try:
                os.link(temporary, target)
            except FileExistsError as error:
                raise AlreadyExistsError(f"{target} exists already") from error
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._create_without_links(key, Path(temporary), target)
            _sync_folder(target.parent)

    def _create_without_links(self, key: str, temporary: Path, target: Path) -> None:
        """Rename onto a free name, where exFAT, network folders and Colab's Drive have no links: one at a time may.

        Who may is who has made a claim, a file that is there once. A claim whose maker has died is renamed away, which
        one of those who wait can do. A maker that stands still for longer than claims last may find its claim gone,
        and gives up.
        """
        claims = self.root / self.TEMPORARY
        claim = claims / f"claim-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        mine = uuid4().hex.encode()
        seen: bytes | None = None
        since = 0.0
        while True:
            try:
                with claim.open("xb") as file:
                    file.write(mine)
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    there = claim.read_bytes()
                    if there != seen:
                        seen, since = there, time.monotonic()
                    elif time.monotonic() - since > _CLAIM_S:
                        claim.rename(claims / f"{claim.name}-of-{uuid4().hex}")
            time.sleep(0.01)
        try:
            if target.exists():
                raise AlreadyExistsError(f"{target} exists already")
            if claim.read_bytes() != mine:
                raise OSError(errno.ESTALE, "this process stood still for too long")
            temporary.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                if claim.read_bytes() == mine:
                    claim.unlink()

    def grow(self, key: str, data: bytes, present: int) -> None:
        target = self.root / key
        try:
            if not target.is_file() or target.stat().st_size != present:
                self.write(key, data)
                return
            with target.open("ab") as file:
                file.write(memoryview(data)[present:])
        except OSError as error:
            raise _unwritable(target, error) from error

    def delete(self, key: str) -> None:
        target = self.root / key
        try:
            target.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise _unwritable(target, error) from error

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        # A prefix may end inside a name, as it may on S3: walk the folder that it certainly lies in.
        folder = self.root / prefix.rpartition("/")[0]
        keys = []
        for path, folders, files in os.walk(folder, onerror=_unlistable):
            folders[:] = [name for name in folders if name != self.TEMPORARY]
            keys += [(Path(path) / name).relative_to(self.root).as_posix() for name in files]
        return sorted(key for key in keys if key.startswith(prefix))

    def locate(self, key: str = "") -> str:
        return str(self.root / key)

    def age_s(self, key: str) -> float:
        target = self.root / key
        if not target.is_file():
            raise FileNotFoundError(f"{target} does not exist")
        written = target.stat().st_mtime
        # On a network file system it is the server that dates files: a new one tells its time.
        try:
            with self._temporary(key, b"") as (temporary, _):
                now = Path(temporary).stat().st_mtime
        except StorageError:
            now = time.time()  # somebody looks at a run that is not theirs to write
        return max(0.0, now - written)

    def leftovers(self) -> Sequence[str]:
        folder = self.root / self.TEMPORARY
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def remove_leftover(self, name: str) -> None:
        (self.root / self.TEMPORARY / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes):  # type: ignore[no-untyped-def]
        """A synced temporary file with the data, and the path it is meant for, in a folder that exists."""
        target = self.root / key
        temporary = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = self.root / self.TEMPORARY
            folder.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder)
            half = len(data) // 2
            with os.fdopen(handle, "wb") as file:
                file.write(memoryview(data)[:half])
                failpoint("object-half-written")
                file.write(memoryview(data)[half:])
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # of disks that have no modes, which is no harm
                Path(temporary).chmod(0o644)
            yield temporary, target
        except AlreadyExistsError:
            raise
        except OSError as error:
            raise _unwritable(target, error) from error
        finally:
            if temporary is not None:
                with contextlib.suppress(FileNotFoundError):
                    Path(temporary).unlink()


def _unlistable(error: OSError) -> None:
    """A folder that is not there holds nothing; one that cannot be looked into must not pass for an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageError(f"cannot list {error.filename}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(handle)


_ELSEWHERE = "choose another --run-dir"
_ADVICE = {
    errno.ENOSPC: f"free the disk or {_ELSEWHERE}",
    errno.EDQUOT: f"your quota there is used up: free some of it or {_ELSEWHERE}",
    errno.EROFS: f"it is mounted to be read only: {_ELSEWHERE}, or have it mounted to be written",
    errno.EACCES: f"its permissions forbid it to this user: change them or {_ELSEWHERE}",
    errno.EPERM: f"its file system or owner forbids it: {_ELSEWHERE}",
    errno.ENOTDIR: f"a file is where a folder is needed: {_ELSEWHERE}",
    errno.ENAMETOOLONG: "choose a shorter --run-dir",
    errno.EMFILE: "this process has too many open files: raise `ulimit -n`",
    errno.ENFILE: "this machine has too many open files: end other programs",
    errno.EIO: f"the disk fails: copy what is there and {_ELSEWHERE}",
    errno.ESTALE: "the network folder was exported anew: mount it again",
}


def _unwritable(path: Path, error: OSError) -> StorageError:
    advice = _ADVICE.get(error.errno or 0, f"put that right or {_ELSEWHERE}")
    return StorageError(
        f"cannot write {path}: {error.strerror or error}. Nothing that was committed before is touched; {advice}, then "
        "run the same command again."
    )


def as_run_dir(text: str) -> str:
    """A run directory as people write it: a home folder is filled in.

    Raises:
        ConfigError: It looks like a URL and is none, or names a home that nobody has.
    """
    scheme, colon, rest = text.partition(":")
    if "://" in text:
        return text
    if colon and (rest.startswith("/") or scheme.lower() in _SCHEMES) and len(scheme) > 1 and scheme.isalnum():
        url = f"{scheme.lower()}://{rest.lstrip('/')}"
        raise ConfigError(f"{text} looks like a URL and is none: is it {url}? For a folder of that name give ./{text}")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{text}: there is no such home; for a folder of that name give ./{text}") from error


def open_store(run_dir: str) -> Store:
    """The store of a run directory: a path, or ``s3://bucket/prefix``.

    Raises:
        ConfigError: the URL scheme is not one that is supported, or the URL is none.
    """
    scheme, separator, _ = run_dir.partition("://")
    if scheme == "s3" and separator:
        from pipeline.storage.s3 import S3Store

        return S3Store(run_dir)
    if separator:
        raise ConfigError(
            f"--run-dir {run_dir}: {scheme}:// is not supported; give a path to a local folder or s3://bucket/prefix"
        )
    return LocalStore(run_dir)


def check_lasting(run_dir: str) -> None:
    """Refuse a run directory that lies in a job's copy of the sources, which is deleted some time after the job.

    Raises:
        ConfigError: it is a relative path.
    """
    if isinstance(open_store(run_dir), LocalStore) and not Path(run_dir).is_absolute():
        raise ConfigError(
            f"--run-dir {run_dir}: on a cluster this is s3://bucket/prefix, or the absolute path of a folder that all "
            "nodes share: a relative one is lost with the job's copy of the sources"
        )
