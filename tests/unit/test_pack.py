"""Packs: the agent of a run in a small folder, which everything reads that reads a run."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from pipeline.agent import Agent
from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.statistics import Estimate, estimate
from pipeline.cli.main import main
from pipeline.comparison.arms import read_result
from pipeline.config.presets import dump, load_config
from pipeline.data.trained_agent import TrainedAgent
from pipeline.execution.in_process import InProcessExecutor
from pipeline.models.half_precision import to_half
from pipeline.run import run_stages
from pipeline.sharing import pack
from pipeline.stages.table import STAGES
from pipeline.storage import pretrained
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.storage.pretrained import open_pretrained
from tests.counting import counting_config
from tests.hub import TOKEN, Hub, faults_of_card
from tests.made_run import returns_of

ROOT = Path(__file__).parents[2]
HERE = ("-o", "execution.executor=in-process")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on the counting environment."""
    config = counting_config({"execution.executor": "in-process", "execution.ray_address": "secret:6379"})
    store = LocalStore(tmp_path_factory.mktemp("run") / "ours")
    store.write(CONFIG, dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES[:6])
    return store.root


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "counter"
    assert main(["pack", str(run), "--name", "counter", "--out", str(out)]) == 0
    return out


def test_a_pack_is_a_small_sound_run_with_a_card(run: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(packed)
    assert sum(path.stat().st_size for path in packed.rglob("*") if path.is_file()) < pack.MAX_BYTES
    found = check_run(store)
    assert found.problems == [] and found.foreign == [] and found.unnamed == []
    assert sorted(path.name for path in packed.iterdir()) == [
        "README.md", "config.yaml", "evaluation", "evolution", "mdnrnn", "vae",
    ]  # fmt: skip
    assert "secret" not in (packed / "config.yaml").read_text()
    text = (packed / "README.md").read_text()
    shown = returns_of(packed)[min(returns_of(packed))]
    assert f"{np.mean(shown):.1f} +- {np.std(shown, ddof=1):.1f}" in text
    assert "world-models run config.yaml" in text and "\nlicense: mit\n" in text and faults_of_card(text) == []
    assert main(["status", str(packed)]) == 0
    assert "evaluate      complete" in capsys.readouterr().out
    assert [path.name for path in packed.parent.iterdir()] == ["counter"], "nothing is left beside it"


def test_example_on_the_card_prints_the_first_return(packed: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (packed / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=packed.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = returns_of(packed)
    assert float(done.stdout) == pytest.approx(shown[min(shown)][0], abs=1e-9)


def test_a_pack_says_nothing_about_who_made_it(run: Path, tmp_path: Path) -> None:
    """Also of a run that refers to stages of another run."""
    store = LocalStore(tmp_path / "refers")
    config = counting_config({"execution.executor": "in-process", "execution.workers": 1})
    store.write(CONFIG, dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES[:6], reuse=[LocalStore(run)])
    assert "reused_from" in (store.root / "vae/MANIFEST.json").read_text()
    out = tmp_path / "pack"
    previous = os.umask(0o027)
    try:
        assert main(["pack", str(store.root), "--name", "mine", "--out", str(out)]) == 0
    finally:
        os.umask(previous)
    for path in out.rglob("*"):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o750, path
            continue
        content = path.read_bytes()
        for secret in (str(tmp_path), str(run), '"reused_from"', '"workers"', '"retries"'):
            assert secret.encode() not in content, (path, secret)
        if path.suffix in (".json", ".md", ".yaml"):
            assert platform.node() not in content.decode(), path
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    manifests = [json.loads(path.read_text()) for path in out.rglob("MANIFEST.json")]
    assert len(manifests) == 4
    for manifest in manifests:
        assert "session" not in manifest["info"] and {"cpu", "code_version", "versions"} <= manifest["info"].keys()


def test_half_precision_agent_of_the_run_has_the_score_on_its_card(run: Path, packed: Path, tmp_path: Path) -> None:
    ours, theirs = TrainedAgent.read(LocalStore(run)), TrainedAgent.read(LocalStore(packed))
    for before, after in ((ours.vae_weights, theirs.vae_weights), (ours.mdnrnn_weights, theirs.mdnrnn_weights)):
        assert len(after) < 0.7 * len(before)
        for name, array in load(after).items():
            whole = load(before)[name]
            assert array.dtype == (np.float32 if name == "activation_max" else np.float16)
            np.testing.assert_array_equal(array, whole.astype(array.dtype))
    np.testing.assert_array_equal(ours.controller(), theirs.controller())
    again = tmp_path / "again"
    assert (
        main(["evaluate", "--agent", str(packed), "--run-dir", str(again), "-o", "execution.executor=in-process"]) == 0
    )
    shown = returns_of(packed)
    assert returns_of(again) == {"agent": shown[min(shown)]}


def test_packs_are_compared_with_the_cost_of_the_whole_run(run: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    other = tmp_path / "other"
    assert (
        main(["evaluate", "--agent", str(packed), "--run-dir", str(other), "-o", "execution.executor=in-process"]) == 0
    )
    assert main(["compare", str(packed), str(other), "--out", str(out)]) == 0
    ((first, _),) = [json.loads((out / "comparison.json").read_text())["arms"]]
    assert main(["compare", str(run), str(other), "--out", str(tmp_path / "of-the-run")]) == 0
    ((whole, _),) = [json.loads((tmp_path / "of-the-run" / "comparison.json").read_text())["arms"]]
    assert first["env_steps"] == whole["env_steps"] > 0


def test_an_agent_of_the_package_is_loaded_by_name_and_cannot_be_changed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(packed, tmp_path / "counter")
    monkeypatch.setattr(pretrained, "folder_of_pretrained", lambda: tmp_path)
    agent = Agent.load("pretrained:counter")
    assert agent.config.env.id == "tests.counting:CountingEnv"
    store = open_pretrained("counter")
    changes: list[Callable[[], None]] = [
        lambda: store.write("x", b""),
        lambda: store.create("x", b""),
        lambda: store.append("x", b"", 0),
        lambda: store.delete(CONFIG),
    ]
    for change in changes:
        with pytest.raises(StorageError, match=r"copy it first, `world-models storage copy pretrained:counter"):
            change()
    with pytest.raises(
        ConfigError, match=r"pretrained:nobody: there is no such agent\. .* package: pretrained:counter$"
    ):
        open_pretrained("nobody")
    monkeypatch.setattr(pretrained, "folder_of_pretrained", lambda: tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"no such agent\. No agent comes with this package\. .*`world-models run`"):
        open_pretrained("counter")
    monkeypatch.setattr(pretrained, "folder_of_pretrained", lambda: tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["resume", "pretrained:counter"])
    assert main(["storage", "check", "pretrained:counter"]) == 0
    assert main(["storage", "copy", "pretrained:counter", str(tmp_path / "copy")]) == 0
    assert returns_of(tmp_path / "copy") == returns_of(packed)
    capsys.readouterr()


def test_a_loss_in_half_precision_keeps_float32_which_may_be_too_large(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Estimate(-5.0, -8.0, -2.0, 0.0, 1)]
    monkeypatch.setattr(pack, "estimate", lambda *arguments: found.pop() if found else estimate(*arguments))
    monkeypatch.setattr(pack, "MAX_BYTES", 30_000_000)
    made: list[Any] = []
    real = pack.make_pack

    def noted(*arguments: Any) -> Any:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(pack, "make_pack", noted)
    assert main(["pack", str(run), "--name", "whole", "--out", str(tmp_path / "whole")]) == 0
    assert made[0].precision == "float32" and made[0].difference.mean == 0, "the run's own weights"
    assert returns_of(tmp_path / "whole") == returns_of(run)
    monkeypatch.setattr(pack, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(pack, "make_pack", real)
    assert main(["pack", str(run), "--name", "large", "--out", str(tmp_path / "large")]) == 1
    assert "are allowed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]


def test_weights_too_large_for_half_precision_are_kept_in_float32(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_large(weights: bytes) -> bytes:
        raise ValueError("mu.weight reaches 70000, too large for float16")

    monkeypatch.setattr(pack, "to_half", too_large)
    monkeypatch.setattr(pack, "MAX_BYTES", 30_000_000)
    assert main(["pack", str(run), "--name", "large", "--out", str(tmp_path / "large")]) == 0
    assert returns_of(tmp_path / "large") == returns_of(run)
    assert "keeping float32: mu.weight reaches 70000" in caplog.text


def test_runs_that_cannot_be_packed_are_refused_first(
    run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(run), "--name", "x", "--out", str(packed)]) == 1
    assert f"{packed} exists" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    shutil.rmtree(unfinished / "evaluation")
    assert main(["pack", str(unfinished), "--name", "x", "--out", str(tmp_path / "x")]) == 1
    assert "is not complete" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "nowhere"), "--name", "x", "--out", str(tmp_path / "x")]) == 1
    with pytest.raises(SystemExit):
        main(["pack", str(run), "--name", "a/b"])
    with pytest.raises(SystemExit):
        main(["pack", str(run), "--name", "x", "--license", "see below"])
    assert "an SPDX identifier was expected" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_weights_too_large_for_half_precision_are_an_error() -> None:
    with pytest.raises(ValueError, match="big reaches 70000"):
        to_half(save({"big": np.full(3, 7e4, np.float32)}))


def test_results_alone_can_be_compared_and_are_copied_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    for _ in range(2):
        assert main(["storage", "copy", str(run), str(copy), "--results"]) == 0
    whole, found = (read_result(LocalStore(folder)) for folder in (run, copy))
    assert found.history == whole.history and list(found.returns) == list(whole.returns)
    assert (found.env_steps, found.seconds, found.controller) == (whole.env_steps, whole.seconds, whole.controller)
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert len(files) == 7 and all(b"secret" not in path.read_bytes() for path in files)
    assert check_run(LocalStore(copy)).problems == []
    for path in (copy / "evaluation/MANIFEST.json", copy / "config.yaml"):  # as after an interruption
        path.unlink()
    assert main(["storage", "copy", str(run), str(copy), "--results"]) == 0
    assert list(read_result(LocalStore(copy)).returns) == list(whole.returns)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["storage", "copy", str(run), str(tmp_path), "--results"]) == 1
    assert "holds other files" in capsys.readouterr().err


def test_the_config_of_a_pack_is_one_that_runs(packed: Path) -> None:
    config = load_config(str(packed / "config.yaml"), [])
    assert config.name == "counter" and config.execution.ray_address is None
    assert config.evolve == counting_config().evolve


def push(place: str, hub: Hub, home: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # the stand-in takes large files as Git LFS does
    }
    command = [sys.executable, "-m", "pipeline", "push", place, "--to", "hf://me/counter", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_pack_is_uploaded_whole_and_an_earlier_one_replaced(packed: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(packed)): path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    with Hub() as hub:
        done = push(str(packed), hub, tmp_path / "home", "--private")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"uploaded: {hub.url}/me/counter/commit/{'1' * 40}\n"
        assert files.items() <= hub.repositories["me/counter"].items() and hub.private["me/counter"]
        assert len(hub.objects) == 1, "V is large"
        hub.repositories["me/counter"] |= {"vae/data/old.safetensors": b"", "of-somebody.bin": b"theirs"}
        assert push(str(packed), hub, tmp_path / "home").returncode == 0
        assert "vae/data/old.safetensors" not in hub.repositories["me/counter"]
        assert hub.repositories["me/counter"]["of-somebody.bin"] == b"theirs", "files of others stay"

        refused = push(str(packed), hub, tmp_path / "home", token="hf_" + "w" * 34)
        assert refused.returncode == 1 and hub.refusals
        assert "401" in refused.stderr and "HF_TOKEN" in refused.stderr and "Traceback" not in refused.stderr
        assert "Invalid user token" in refused.stderr, "the cause, which the hub's error names last"


def test_a_card_that_the_hub_does_not_take_is_refused_with_the_reason(packed: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(packed, wrong)
    card = wrong / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: MIT"))
    with Hub() as hub:
        done = push(str(wrong), hub, tmp_path / "home")
        assert done.returncode == 1 and hub.repositories["me/counter"] == {}
        assert '"license" must be one of [mit, ' in done.stderr and "Correct README.md of the pack" in done.stderr
        hub.url, real = "http://127.0.0.1:9", hub.url
        gone = push(str(packed), hub, tmp_path / "home")
        hub.url = real
    assert gone.returncode == 1 and "HF_ENDPOINT" in gone.stderr and "hf auth login" not in gone.stderr


def test_only_a_sound_pack_is_uploaded(
    run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "--to", "hf://me/counter"]) == 1
    assert "is no pack: it has no README.md" in capsys.readouterr().err
    assert main(["push", str(packed), "--to", "s3://me/counter"]) == 2
    assert "expected hf://USER/NAME" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(packed, damaged)
    (weights,) = (damaged / "vae/data").iterdir()
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["push", str(damaged), "--to", "hf://me/counter"]) == 1
    assert "is damaged and was not uploaded" in capsys.readouterr().err
