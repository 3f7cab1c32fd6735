"""The fence: a store that writes nothing more once another session has the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.base.errors import LeaseError
from pipeline.storage.layout import session_key
from pipeline.storage.sessions import BEGUN, read_owner
from pipeline.storage.store import Store


class FencedStore:
    """A run's store in the hands of one session: it changes nothing once a later session has begun.

    Args:
        store: the run's.
        number: the session's number.
    """

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self._number = number
        self._changes = store.guarded(self.check)

    @property
    def session(self) -> int:
        """See ``Store.session``."""
        return self._number

    def check(self) -> None:
        """Look whether the lease is still this session's.

        Raises:
            LeaseError: a later session has begun.
        """
        # Sessions are numbered without gaps, so one look is enough, however many there were.
        if self._store.exists(session_key(self._number + 1, BEGUN)):
            successor = read_owner(self._store, self._number + 1)
            raise LeaseError(
                f"this driver has lost {self._store.locate()} to {successor}: it gave no sign of life for so long that "
                "another one went on with the run. Nothing more is written from here."
            )

    def write(self, key: str, data: bytes) -> None:
        self.check()
        self._changes.write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self.check()
        self._changes.create(key, data)

    def grow(self, key: str, data: bytes, present: int) -> None:
        self.check()
        self._changes.grow(key, data, present)

    def delete(self, key: str) -> None:
        self.check()
        self._changes.delete(key)

    def remove_leftover(self, name: str) -> None:
        self.check()
        self._changes.remove_leftover(name)

    def guarded(self, look: Callable[[], None]) -> FencedStore:
        return self  # it looks by itself

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def list(self, prefix: str = "") -> list[str]:
        return self._store.list(prefix)

    def locate(self, key: str = "") -> str:
        return self._store.locate(key)

    def age_s(self, key: str) -> float:
        return self._store.age_s(key)

    def leftovers(self) -> Sequence[str]:
        return self._store.leftovers()
