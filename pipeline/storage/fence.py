"""Fencing: a store that refuses to write after another session has taken over the run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.errors import LeaseError
from pipeline.storage.layout import SESSION_BEGUN, session_key
from pipeline.storage.sessions import read_owner
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Fence:
    """Check that a session still has the lease of its run.

    Attributes:
        store: Store of the run.
        session: Session number.
    """

    store: Store
    session: int

    def check(self) -> None:
        """Check that no later session has begun.

        Raises:
            LeaseError: A later session has begun.
        """
        # Session numbers have no gaps, so it is enough to look for the next one.
        if self.store.exists(session_key(self.session + 1, SESSION_BEGUN)):
            successor = read_owner(self.store, self.session + 1)
            raise LeaseError(
                f"this driver has lost {self.store.locate()} to {successor}: its lease expired without a sign of "
                "life, and another driver has taken over the run. This driver writes nothing more."
            )


def fenced(store: Store, session: int) -> Store:
    """Store of a run for one session: it refuses every change after a later session has begun.

    Args:
        store: Store of the run.
        session: Session number.
    """
    return store.guarded(Fence(store, session).check, session)
