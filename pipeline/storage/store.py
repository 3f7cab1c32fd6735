"""Stores: a key-value view of a run directory. ``local.py`` and ``s3.py`` implement it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol, Self, runtime_checkable


class Store(Protocol):
    """Bytes under slash-separated keys. Every write is atomic: a reader sees a whole object or none.

    Stores are small and picklable: workers on other machines get a copy.

    Attributes:
        session: Number of the session that writes to this store (``storage/lease.py``); 0 outside a session.
    """

    @property
    def session(self) -> int:
        """Number of the session that writes to this store; 0 outside a session."""

    def guarded(self, check: Callable[[], None], session: int = 0) -> Self:
        """Copy of this store that calls ``check()`` before every change, and before every retry of any request.

        Args:
            check: Picklable function; an exception from it aborts the operation.
            session: Number of the session that writes to the copy.
        """

    def read(self, key: str) -> bytes:
        """Bytes of an object; ``FileNotFoundError`` if there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object."""

    def create(self, key: str, data: bytes) -> None:
        """Create an object; ``AlreadyExistsError`` if the key is taken."""

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""

    def list(self, prefix: str = "") -> list[str]:
        """All keys with a prefix, sorted, without temporary files of writers."""

    def locate(self, key: str = "") -> str:
        """Path or URL of an object, which a user can paste into a shell."""

    def age_s(self, key: str) -> float:
        """Seconds since an object was last written, by the store's own clock; ``FileNotFoundError`` if there is none.

        The writers' clocks play no part, so machines whose clocks disagree get the same age.
        """


@runtime_checkable
class Appendable(Protocol):
    """Store that can also append to an object."""

    def append(self, key: str, data: bytes, present: int) -> None:
        """Extend an object to ``data``, whose first ``present`` bytes it already holds; not atomic.

        An object of another size, or a missing one, is written as a whole.
        """


class Guarded:
    """Check and session of a store, see ``Store.guarded``."""

    session = 0
    _check: Callable[[], None] | None = None

    def guarded(self, check: Callable[[], None], session: int = 0) -> Self:
        """See ``Store.guarded``."""
        guarded = copy.copy(self)
        guarded._check, guarded.session = check, session
        return guarded

    def require_allowed(self) -> None:
        """Call the check, if there is one."""
        if self._check is not None:
            self._check()
