"""Fencing: a store that refuses to write after another session has taken over the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.base.errors import LeaseError
from pipeline.storage.layout import session_key
from pipeline.storage.sessions import BEGUN, read_owner
from pipeline.storage.store import Store


class FencedStore:
    """Store of a run for one session: it refuses every change after a later session has begun.

    Args:
        store: Store of the run.
        number: Session number.
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
        """Check that this session still has the lease.

        Raises:
            LeaseError: A later session has begun.
        """
        # Session numbers have no gaps, so it is enough to look for the next one.
        if self._store.exists(session_key(self._number + 1, BEGUN)):
            successor = read_owner(self._store, self._number + 1)
            raise LeaseError(
                f"this driver has lost {self._store.locate()} to {successor}: its lease expired without a sign of "
                "life, and another driver has taken over the run. This driver writes nothing more."
            )

    def write(self, key: str, data: bytes) -> None:
        """See ``Store.write``."""
        self.check()
        self._changes.write(key, data)

    def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``."""
        self.check()
        self._changes.create(key, data)

    def grow(self, key: str, data: bytes, present: int) -> None:
        """See ``Store.grow``."""
        self.check()
        self._changes.grow(key, data, present)

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self.check()
        self._changes.delete(key)

    def remove_leftover(self, name: str) -> None:
        """See ``Store.remove_leftover``."""
        self.check()
        self._changes.remove_leftover(name)

    def guarded(self, check: Callable[[], None]) -> FencedStore:
        """See ``Store.guarded``."""
        return self  # it checks by itself

    def read(self, key: str) -> bytes:
        """See ``Store.read``."""
        return self._store.read(key)

    def exists(self, key: str) -> bool:
        """See ``Store.exists``."""
        return self._store.exists(key)

    def list(self, prefix: str = "") -> list[str]:
        """See ``Store.list``."""
        return self._store.list(prefix)

    def locate(self, key: str = "") -> str:
        """See ``Store.locate``."""
        return self._store.locate(key)

    def age_s(self, key: str) -> float:
        """See ``Store.age_s``."""
        return self._store.age_s(key)

    def leftovers(self) -> Sequence[str]:
        """See ``Store.leftovers``."""
        return self._store.leftovers()
