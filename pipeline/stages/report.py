"""Stage 7: a page with the run's results next to published ones, and its numbers as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from pipeline.base.progress import Progress
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import DRIVE, EVALUATION, RECONSTRUCTIONS, REPORT, VIDEO_END
from pipeline.data.rounds import FIRST, Round, rounds_of, vae_folder
from pipeline.execution.protocol import Executor, Resources
from pipeline.reporting.dream_film import TEMPERATURE, DreamFilm, film_dream
from pipeline.reporting.findings import gather
from pipeline.storage.layout import NUMBERS, PAGE, view_key
from pipeline.storage.manifest import commit, newest, read_verified, require_manifest
from pipeline.storage.store import Store


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Gather the findings, film a dream, and write both files: committed, and as a view in the report folder.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    from pipeline.reporting.page import make_page  # imports matplotlib, which only a report needs

    findings = gather(config, store)
    with Progress("film a dream", "dream") as show:
        film = executor.run(film_dream, config, store, resources=Resources(), on_update=show)
    last = rounds_of(config.rounds)[-1]
    drive = _picture(store, last.folder(EVALUATION), DRIVE, VIDEO_END)
    reconstructions = _picture(store, vae_folder(config.rounds, last), RECONSTRUCTIONS)
    page = make_page(config, findings, film, drive, reconstructions)
    numbers = json.dumps(
        {"format_version": 1, **findings.to_json(), "dream": _dream_numbers(film)}, indent=1, allow_nan=False
    ).encode()
    _commit(store, PAGE, findings.tag, page.at("../.."))
    _commit(store, NUMBERS, findings.tag, numbers)
    store.write(view_key(REPORT, PAGE), page.at(".."))
    store.write(view_key(REPORT, NUMBERS), numbers)
    return {"evaluation": findings.tag}


def _picture(store: Store, prefix: str, start: str, end: str = "") -> bytes | None:
    record = newest(require_manifest(store, prefix).records, start, end)
    return None if record is None else read_verified(store, record)


def _dream_numbers(film: DreamFilm | None) -> dict[str, Any] | None:
    if film is None:
        return None
    values = {name: value for name, value in asdict(film).items() if name not in ("real", "decoded", "video")}
    return {"temperature": TEMPERATURE, **values}


def _commit(store: Store, name: str, tag: str, data: bytes) -> None:
    """Commit under a name made of the evaluation and a digest of the content.

    The name includes the content because a report is not a result: another version of the code, or another machine,
    may produce different bytes, and that is not a conflict.
    """
    path = PurePosixPath(name)
    digest = hashlib.sha256(data).hexdigest()[:8]
    commit(store, REPORT, f"{path.stem}-{tag}-{digest}{path.suffix}", data)
