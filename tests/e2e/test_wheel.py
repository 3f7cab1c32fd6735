"""A wheel works without the repository: its command, presets, environments, pages and agents."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

# Parts of a checkout that are not in a wheel.
_LEFT_OUT = (".git", ".venv", "runs", "build", "__pycache__", "*.egg-info", ".mypy_cache", ".ruff_cache", ".hypothesis")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "sources", ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        "./sources",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


_PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
_ABSENT = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        print(name)
"""


def dependencies_of(wheel: Path) -> list[str]:
    """Names of the packages that a wheel needs without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    needed = map(Requirement, lines)
    return [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]


def python_of(version: str, wheel: Path) -> str:
    """An interpreter of a version that has the dependencies of a wheel; without one, the test is skipped."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    python = shutil.which(f"python{version}")
    # A launcher, such as pyenv's, may have the name of a version that is not there.
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"Python {version} is not installed")
    command = [python, "-c", _ABSENT, *dependencies_of(wheel)]
    if absent := subprocess.run(command, capture_output=True, text=True, check=True).stdout.split():
        pytest.skip(f"{python} lacks {', '.join(absent)}: .ci/wheel {python} installs them and runs the wheel")
    return python


@pytest.fixture(scope="module", params=["3.11", "3.12", "3.13"])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel, and with an interpreter's dependencies, but not its sources."""
    python, place = python_of(request.param, wheel), tmp_path_factory.mktemp("environment")
    run(python, "-m", "venv", "--without-pip", place, cwd=place)
    # Of the folders that a .pth file adds, the .pth files are not read: so this checkout is not found through them.
    packages = Path(run(place / "bin/python", "-c", _PURELIB, cwd=place).strip())
    (packages / "dependencies.pth").write_text(run(python, "-c", _PURELIB, cwd=place))
    pip = (sys.executable, "-m", "pip", "--python", place / "bin/python")
    run(*pip, "install", "-q", "--no-deps", "--ignore-installed", wheel, cwd=place)
    return place / "bin"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_everything_but_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = ("actors", "cluster", "configs", "pipeline")
    code = {name for name in listed if name.startswith(tuple(f"{folder}/" for folder in folders))}
    # Files for clusters are for those who have a checkout.
    needed = {name for name in code if not name.startswith("cluster/") or name.endswith(".py")}
    assert needed - inside == set()
    assert {name.split("/")[0] for name in inside} == set(folders)


def test_its_command_runs_a_preset_where_there_are_no_sources(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import pipeline; print(pipeline.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent)), where
    run(installed / "world-models", "run", "smoke", "--run-dir", "made", cwd=tmp_path)
    assert (tmp_path / "made/report/index.html").stat().st_size > 10_000
    assert "report        complete" in run(installed / "world-models", "status", "made", cwd=tmp_path)
    code = (
        "import gymnasium\n"
        "from pipeline.agent import Agent\n"
        "agent = Agent.load('pretrained:carracing')\n"
        "assert Agent.load('made').config.name == 'smoke'\n"
        "env = gymnasium.make('pipeline.envs.car_racing:WorldModels/FastCarRacing-v3')\n"
        "observation, _ = env.reset(seed=1)\n"
        "print(env.action_space.contains(agent.act(observation)))\n"
    )
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "True\n"
    code = "import gymnasium, pipeline.dream_env; print(gymnasium.spec('WorldModels/Dream-v0').id)"
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "WorldModels/Dream-v0\n"
    assert "usage: world-models" in run(installed / "world-models-ray", "--help", cwd=tmp_path)


def test_page_of_the_packaged_agent_is_served_where_there_are_no_sources(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "world-models"), "view", "pretrained:carracing"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            _, _, url = server.stdout.readline().strip().partition("open ")
            with urlopen(url, timeout=600) as page:
                assert b"World Models" in page.read()
        finally:
            server.terminate()
