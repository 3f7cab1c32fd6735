"""The names that this program writes in a run directory.

Others leave things there too: file managers, editors, network file systems, synchronisation services, people. What has
another name is foreign: nothing reads it, removes it or takes it for damage.
"""

from __future__ import annotations

import re

from pipeline.storage.store import Store

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_CONTENT = "(data|files)"  # folders of committed objects
_OWN = re.compile(
    rf"""
    config\.yaml | sittings\.jsonl
    | sittings/\d{{6}}/[a-z-]+\.json
    | [a-z]+/(
        MANIFEST\.json | BEGUN\.json | metrics\.jsonl | index\.html | report\.json
        | records/{_NAME}\.json
        | {_CONTENT}/{_NAME}-[0-9a-f]{{12}}(\.[a-z0-9]+)?
        | superseded/[0-9a-f]{{12}}\.json
        | checkpoints/records/\d{{8}}-\d{{6}}\.json
        | checkpoints/data/\d{{8}}-\d{{6}}-[0-9a-f]{{12}}
        | tensorboard/events\.out\.tfevents\.{_NAME}
    )
    """,
    re.VERBOSE,
)
# Left behind by programs that were only looking; a folder that holds nothing else is empty.
_STREWN = re.compile(r"(.*/)?(\.[^/]*|[^/]*~|Thumbs\.db|desktop\.ini)(/.*)?")


def own_keys(store: Store, prefix: str = "") -> list[str]:
    """The keys that begin so and that this program may have written, sorted."""
    return [key for key in store.list(prefix) if _OWN.fullmatch(key)]


def stage_of(key: str) -> str | None:
    """The prefix of the stage, or of its checkpoints, that a committed object's key belongs to; None for other keys."""
    found = re.fullmatch(rf"(.+)/{_CONTENT}/[^/]+", key)
    return found[1] if found else None


def foreign_keys(store: Store) -> list[str]:
    """All other keys, sorted."""
    return [key for key in store.list() if not _OWN.fullmatch(key)]


def occupying_keys(store: Store) -> list[str]:
    """The keys, own or foreign, for which a folder is not empty, sorted."""
    return [key for key in store.list() if not _STREWN.fullmatch(key)]
