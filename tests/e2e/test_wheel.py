"""A wheel works without the repository: its command, presets, environments, pages and agents."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a checkout has and a wheel is not made of.
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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel, and with the dependencies of this one, but not its sources."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # Of the folders that a .pth file adds, the .pth files are not read: so this checkout is not found through them.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", str(place / "bin/python"))
    command = [*pip, "install", "-q", "--no-deps", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
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
        "agent = Agent.load('made')\n"
        "env = gymnasium.make('pipeline.envs.car_racing:WorldModels/FastCarRacing-v3')\n"
        "observation, _ = env.reset(seed=1)\n"
        "print(env.action_space.contains(agent.act(observation)))\n"
    )
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "True\n"
