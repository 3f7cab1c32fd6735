"""Store in a local folder, or in a folder that several machines share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from pipeline.base.errors import AlreadyExistsError, DamagedDataError, StorageError
from pipeline.base.failpoints import failpoint
from pipeline.storage.store import Guarded, Store

_TEMPORARY = ".tmp"  # folder of the files that are being written; a killed writer leaves its file there

# Error numbers of link() on file systems without hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})
_CLAIM_S = 10.0  # age at which a claim counts as abandoned; a live one lasts for two system calls


class LocalStore(Guarded):
    """Store in a folder. A create-only write is a temporary file, an fsync and a hard link.

    Args:
        root: Path of the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def read(self, key: str) -> bytes:
        """See ``Store.read``."""
        target = self.root / key
        try:
            return target.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{target} does not exist") from error
        except OSError as error:
            damaged = error.errno == errno.EIO  # the disk has lost the data
            kind = DamagedDataError if damaged else StorageError
            raise kind(f"cannot read {target}: {error.strerror or error}") from error

    def write(self, key: str, data: bytes) -> None:
        """See ``Store.write``."""
        self.require_allowed()
        with self._temporary(key, data) as (temporary, target):
            Path(temporary).replace(target)
            _sync_folder(target.parent)

    def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``."""
        self.require_allowed()
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
        """Rename onto a free name, for file systems without hard links: exFAT, network folders, Colab's Drive.

        Only the process that created the newest claim file of a key may rename.
        """
        stem = f"claim-{hashlib.sha256(key.encode()).hexdigest()[:16]}-"
        while True:
            mine, token = self._claim(stem)
            try:
                if target.exists():
                    raise AlreadyExistsError(f"{target} exists already")
                # Otherwise this process was paused for too long, and its claim was superseded or removed.
                if self._claims(stem)[-1:] == [mine] and _read_or_none(mine) == token:
                    temporary.replace(target)
                    return
            finally:
                for claim in self._claims(stem):
                    if claim < mine or (claim == mine and _read_or_none(mine) == token):
                        claim.unlink(missing_ok=True)

    def _claim(self, stem: str) -> tuple[Path, bytes]:
        """Wait until no live process has a claim, and create one; returns its path and its content.

        The claim of a dead process is superseded.
        """
        token = uuid4().bytes
        seen: bytes | None = None
        since = 0.0
        while True:
            present = self._claims(stem)
            with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                newest = present[-1].read_bytes() if present else None
                if newest != seen:
                    seen, since = newest, time.monotonic()
                if newest is None or time.monotonic() - since > _CLAIM_S:
                    number = int(present[-1].name.removeprefix(stem)) + 1 if present else 0
                    mine = self.root / _TEMPORARY / f"{stem}{number:06d}"
                    with contextlib.suppress(FileExistsError), mine.open("xb") as file:  # another process was faster
                        file.write(token)
                        return mine, token
            time.sleep(0.01)

    def _claims(self, stem: str) -> list[Path]:
        return sorted((self.root / _TEMPORARY).glob(f"{stem}*"))

    def append(self, key: str, data: bytes, present: int) -> None:
        """See ``Appendable.append``."""
        self.require_allowed()
        target = self.root / key
        try:
            if not target.is_file() or target.stat().st_size != present:
                self.write(key, data)
                return
            with target.open("ab") as file:
                file.write(memoryview(data)[present:])
        except OSError as error:
            raise _write_error(target, error) from error

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self.require_allowed()
        target = self.root / key
        try:
            target.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise _write_error(target, error) from error

    def exists(self, key: str) -> bool:
        """See ``Store.exists``."""
        return (self.root / key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """See ``Store.list``."""
        # A prefix can end inside a name, as on S3: walk the deepest folder that contains all its keys.
        folder = self.root / prefix.rpartition("/")[0]
        keys = []
        for path, folders, files in os.walk(folder, onerror=_raise_list_error):
            folders[:] = [name for name in folders if name != _TEMPORARY]
            keys += [(Path(path) / name).relative_to(self.root).as_posix() for name in files]
        return sorted(key for key in keys if key.startswith(prefix))

    def locate(self, key: str = "") -> str:
        """See ``Store.locate``."""
        return str(self.root / key)

    def age_s(self, key: str) -> float:
        """See ``Store.age_s``."""
        target = self.root / key
        if not target.is_file():
            raise FileNotFoundError(f"{target} does not exist")
        written = target.stat().st_mtime
        # On a network file system the server sets file times: a new file shows its clock.
        try:
            with self._temporary(key, b"") as (temporary, _):
                now = Path(temporary).stat().st_mtime
        except StorageError:
            now = time.time()  # the user has no write permission
        return max(0.0, now - written)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes):  # type: ignore[no-untyped-def]
        """Synced temporary file with the data, and its target path, whose folder exists."""
        target = self.root / key
        temporary = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = self.root / _TEMPORARY
            folder.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder)
            half = len(data) // 2
            with os.fdopen(handle, "wb") as file:
                file.write(memoryview(data)[:half])
                failpoint("object-half-written")
                file.write(memoryview(data)[half:])
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # some file systems have no modes, which does no harm
                Path(temporary).chmod(0o644)
            yield temporary, target
        except AlreadyExistsError:
            raise
        except OSError as error:
            raise _write_error(target, error) from error
        finally:
            if temporary is not None:
                with contextlib.suppress(FileNotFoundError):
                    Path(temporary).unlink()


def temporary_keys(store: Store) -> list[str]:
    """Keys of the temporary files that killed writers left in a local store, sorted; other stores have none."""
    if not isinstance(store, LocalStore):
        return []
    return sorted(f"{_TEMPORARY}/{path.name}" for path in (store.root / _TEMPORARY).glob("*"))


def remove_temporary_folder(store: Store) -> None:
    """Remove the folder of temporary files of a local store, unless it is in use; for folders that people look at."""
    if isinstance(store, LocalStore):
        with contextlib.suppress(OSError):  # another process writes there, or it is gone
            (store.root / _TEMPORARY).rmdir()


def _raise_list_error(error: OSError) -> None:
    """Error handler of ``os.walk``: a missing folder is empty, but an unreadable one is an error."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageError(f"cannot list {error.filename}: {error.strerror or error}") from error


def _read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(handle)


_ELSEWHERE = "choose another --run-dir"
_ADVICE = {
    errno.ENOSPC: f"free the disk or {_ELSEWHERE}",
    errno.EDQUOT: f"free some of this user's disk quota or {_ELSEWHERE}",
    errno.EROFS: f"{_ELSEWHERE}, or mount it read-write (it is mounted read-only)",
    errno.EACCES: f"change the permissions (this user has no write permission) or {_ELSEWHERE}",
    errno.EPERM: f"{_ELSEWHERE} (its file system or owner does not permit writing)",
    errno.ENOTDIR: f"{_ELSEWHERE} (a file is where a folder is needed)",
    errno.ENAMETOOLONG: "choose a shorter --run-dir",
    errno.EMFILE: "raise `ulimit -n` (this process has too many open files)",
    errno.ENFILE: "end other programs (this machine has too many open files)",
    errno.EIO: f"copy the data of the failing disk and {_ELSEWHERE}",
    errno.ESTALE: "remount the network folder, which was exported again",
}


def _write_error(path: Path, error: OSError) -> StorageError:
    advice = _ADVICE.get(error.errno or 0, f"fix the cause or {_ELSEWHERE}")
    return StorageError(f"cannot write {path}: {error.strerror or error}", resume_after=advice)
