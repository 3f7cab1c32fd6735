"""The agent of a run in a bucket: it is packed, exported, watched and shown like that of a run in a folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from pipeline.cli.main import main
from pipeline.config.presets import dump
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.copying import copy_run
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from pipeline.storage.run_dir import open_store
from tests.counting import counting_config
from tests.viewer_messages import unpacked
from tests.viewing import LIMIT_S, viewing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run on the counting environment."""
    config = counting_config({"execution.executor": "in-process"})
    store = LocalStore(tmp_path_factory.mktemp("run") / "made")
    store.write(CONFIG, dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES)
    return store.root


@pytest.fixture
def url(run: Path, s3_url: str) -> str:
    """The same run in a bucket."""
    copy_run(LocalStore(run), open_store(f"{s3_url}/made"))
    return f"{s3_url}/made"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ["pack", "{run}", "--name", "counter", "--out", "{out}/counter"],
        ["export", "{run}", "--onnx", "{out}/onnx"],
        ["watch", "{run}", "--track", "0", "--dream", "--out", "{out}/drive.mp4"],
        ["compare", "{run}", "--out", "{out}/compared"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_makes_the_same_of_it(
    command: list[str], run: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for name, place in (("folder", str(run)), ("bucket", url)):
        out = tmp_path / name
        out.mkdir()
        assert main([part.format(run=place, out=out) for part in command]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out.replace(str(out), "OUT").replace(place, "RUN")
        made.append((said, {name: data.replace(place.encode(), b"RUN") for name, data in contents(out).items()}))
    (said, of_folder), (said_of_bucket, of_bucket) = made
    assert said == said_of_bucket and of_folder.keys() == of_bucket.keys()
    different = {name for name, data in of_folder.items() if of_bucket[name] != data}
    timed = ("README.md", "evaluation/MANIFEST.json")  # a pack says how long its evaluation took
    assert all(command[0] == "pack" and name.endswith(timed) for name in different), different


def test_the_page_shows_its_world_and_its_progress(url: str) -> None:
    async def look(address: str) -> tuple[dict[str, Any], dict[str, Any]]:
        async with ClientSession() as session, asyncio.timeout(LIMIT_S):
            async with session.ws_connect(f"{address}world", max_msg_size=0) as page:
                kinds: dict[str, dict[str, Any]] = {}
                while "picture" not in kinds:
                    header, _ = unpacked((await page.receive()).data)
                    kinds[header["is"]] = header
            async with session.get(f"{address}runs") as answer:
                return kinds, await answer.json()

    with viewing(url) as server:
        kinds, runs = asyncio.run(look(server.url))
    assert kinds["picture"]["steps"] >= 0 and "failed" not in kinds
    assert "evaluate" in str(runs), runs
