"""Layout of a run directory: builds every key that this program writes, and tells its own keys from foreign ones.

File managers, editors, network file systems, synchronisation services and people also leave files there. A file with
any other name is foreign: nothing reads it, removes it or counts it as damage.

A run directory holds ``config.yaml``, ``sessions/NUMBER/``, a folder for each stage, and ``referrers/`` where other
runs refer to its stages; a pack also holds ``README.md``, its card. The stages of later rounds lie in
``round-NUMBER/``, and other evolutions with the V and M of a round in ``temperature-NUMBER/`` and ``game/``. A stage's
folder holds its manifest, the records of its objects, the objects themselves in ``data/`` and ``files/``, and its
checkpoints.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from pipeline.storage.store import Store

CONFIG = "config.yaml"
CARD = "README.md"
SESSIONS = "sessions/"
REFERRERS = "referrers/"
TRACKERS = "trackers/"
MANIFEST = "MANIFEST.json"
BEGUN = "BEGUN.json"
PAGE, NUMBERS = "index.html", "report.json"
SESSION_BEGUN, HEARTBEAT = "begun", "heartbeat"
TEMPERATURE, GAME = "temperature-", "game"
ROUND = "round-"

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NOTES = "|".join(map(re.escape, (MANIFEST, BEGUN, PAGE, NUMBERS)))
DATA, FILES = "data", "files"  # folders of committed objects: datasets and weights, and files that accompany them
_CONTENT = f"({DATA}|{FILES})"
_OWN = re.compile(
    rf"""
    config\.yaml
    | README\.md
    | sessions/\d{{6}}/[a-z0-9.-]+\.json
    | referrers/[0-9a-f]{{12}}\.json
    | trackers/[a-z]+\.json
    | ({ROUND}\d{{3}}/)?(({TEMPERATURE}[0-9.]+|{GAME})/)?[a-z]+/(
        {_NOTES} | metrics\.jsonl
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
# Files that file browsers leave behind; a folder that holds only these counts as empty.
_CLUTTER = re.compile(r"(.*/)?(\.[^/]*|[^/]*~|Thumbs\.db|desktop\.ini)(/.*)?")


def place_and_stage(prefix: str) -> tuple[str, str]:
    """Folder of the round or branch in which a stage lies, empty for the first round, and the stage's own folder."""
    place, _, stage = prefix.rpartition("/")
    return place, stage


def round_folder(number: int) -> str:
    """Folder of a round after the first."""
    return f"{ROUND}{number:03d}"


def temperature_folder(temperature: float) -> str:
    """Folder of another evolution in dreams, at this temperature."""
    return f"{TEMPERATURE}{temperature:g}"


def session_key(number: int, name: str) -> str:
    """Key of a small object of a session: ``SESSION_BEGUN``, ``HEARTBEAT`` or the name of a stage."""
    return f"{SESSIONS}{number:06d}/{name}.json"


def session_number(key: str) -> int:
    """Number of the session that an object of ``session_key`` belongs to."""
    return int(key.split("/")[1])


def referrer_key(location: str) -> str:
    """Key of the note that another run, at this location, refers to stages of this one."""
    return f"{REFERRERS}{hashlib.sha256(location.encode()).hexdigest()[:12]}.json"


def manifest_key(prefix: str) -> str:
    """Key of a stage's manifest."""
    return f"{prefix}/{MANIFEST}"


def begun_key(prefix: str) -> str:
    """Key of the note that records the inputs with which a stage began."""
    return f"{prefix}/{BEGUN}"


def superseded_key(prefix: str, digest: str) -> str:
    """Key of an earlier manifest of a stage that has grown since."""
    return f"{prefix}/superseded/{digest[:12]}.json"


def records_prefix(prefix: str) -> str:
    """Common prefix of the keys of a stage's records."""
    return f"{prefix}/records/"


def record_key(prefix: str, name: str) -> str:
    """Key of the record that commits an object."""
    return f"{prefix}/records/{name}.json"


def record_name(key: str) -> str:
    """Name of the object that a record commits, from the key of the record."""
    return PurePosixPath(key).name.removesuffix(".json")


def object_folder(key: str) -> str:
    """Folder of a committed object, ``DATA`` or ``FILES``, from its key."""
    return PurePosixPath(key).parent.name


def object_prefix(prefix: str, folder: str, name: str) -> str:
    """Common prefix of the keys that an object of this name has, by its content; arguments as in ``object_key``."""
    return f"{prefix}/{folder}/{PurePosixPath(name).stem}-"


def object_key(prefix: str, folder: str, name: str, sha256: str) -> str:
    """Key of a committed object, unique to its content.

    Args:
        prefix: Prefix of the stage.
        folder: Folder of the object: ``DATA`` or ``FILES``.
        name: Name of the object.
        sha256: SHA-256 (hex) of the object.
    """
    return f"{object_prefix(prefix, folder, name)}{sha256[:12]}{PurePosixPath(name).suffix}"


def checkpoints_prefix(prefix: str) -> str:
    """Prefix of a stage's checkpoints; their records lie under it like the records of a stage."""
    return f"{prefix}/checkpoints"


def checkpoint_name(step: int, session: int) -> str:
    """Name of a checkpoint, from its step and the number of the session that wrote it."""
    return f"{step:08d}-{session:06d}"


def step_and_session(name: str) -> tuple[int, int]:
    """Step and session number in the name of a checkpoint."""
    step, _, session = name.partition("-")
    return int(step), int(session)


def metrics_key(prefix: str) -> str:
    """Key of a stage's metrics as JSON lines."""
    return f"{prefix}/metrics.jsonl"


def tracker_key(name: str) -> str:
    """Key of the state of an experiment tracker: the run's ID there, and the last published steps."""
    return f"{TRACKERS}{name}.json"


def view_key(prefix: str, name: str) -> str:
    """Key of a view of the committed report: ``PAGE`` or ``NUMBERS``."""
    return f"{prefix}/{name}"


def tensorboard_prefix(prefix: str) -> str:
    """Common prefix of the keys of a stage's TensorBoard files."""
    return f"{prefix}/tensorboard/events.out.tfevents."


def stage_of(key: str) -> str | None:
    """Prefix of the stage, or of its checkpoints, to which a committed object belongs; None for other keys."""
    found = re.fullmatch(rf"(.+)/{_CONTENT}/[^/]+", key)
    return found[1] if found else None


def stage_of_record(key: str) -> str | None:
    """Prefix of the stage, or of its checkpoints, to which a record belongs; None for other keys."""
    prefix, found, _ = key.partition("/records/")
    return prefix if found else None


def stage_of_manifest(key: str) -> str | None:
    """Prefix of the stage to which a manifest belongs; None for other keys."""
    return key.removesuffix(f"/{MANIFEST}") if key.endswith(f"/{MANIFEST}") else None


def stage_of_checkpoint(key: str) -> str | None:
    """Prefix of the stage to which an object or record of a checkpoint belongs; None for other keys."""
    prefix, found, _ = key.partition("/checkpoints/")
    return prefix if found else None


def is_sealed_note(key: str) -> bool:
    """Whether an object other than a record or manifest carries its own checksum."""
    ends = (f"/{BEGUN}", f"/{SESSION_BEGUN}.json")
    return key.endswith(ends) or "/superseded/" in key or key.startswith((REFERRERS, TRACKERS))


def own_keys(store: Store, prefix: str = "") -> list[str]:
    """Keys with this prefix that this program can have written, sorted."""
    return [key for key in store.list(prefix) if _OWN.fullmatch(key)]


def foreign_keys(store: Store) -> list[str]:
    """Keys that this program never writes, sorted."""
    return [key for key in store.list() if not _OWN.fullmatch(key)]


def occupying_keys(store: Store) -> list[str]:
    """Keys, own or foreign, that make a folder count as not empty, sorted."""
    return [key for key in store.list() if not _CLUTTER.fullmatch(key)]
