"""The import rules: layers configs <- pipeline <- actors <- cluster, independent stages, and torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("configs", "pipeline", "actors", "cluster")
# These modules assemble the program: inside functions, they may import from any layer.
COMPOSITION_ROOTS = ("pipeline/cli/", "pipeline/bench/")
RAY_REFERENCE = "pipeline/bench/actor_pool.py"  # Ray's own pool, to compare with

# Modules that stages share.
SHARED = ("pipeline.stages.description", "pipeline.stages.table")


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """All imports of a module, and whether each one is inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            yield node.module or "", False
            yield from ((f"{node.module}.{alias.name}", False) for alias in node.names)
        else:
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from ((name, inside or in_function) for name, inside in imports(node))


def faults(file: str, source: str) -> list[str]:
    """The imports of a file that break the rules."""
    layer = file.split("/")[0]
    found = []
    for name, inside in imports(ast.parse(source)):
        package = name.split(".")[0]
        upwards = package in LAYERS and LAYERS.index(package) > LAYERS.index(layer)
        if upwards and not (inside and file.startswith(COMPOSITION_ROOTS)):
            found.append(f"{file} imports {name}")
        if package == "ray" and layer == "pipeline" and file != RAY_REFERENCE:
            found.append(f"{file} imports {name}: that is for actors")
        if package == "torch" and layer == "cluster":
            found.append(f"{file} imports {name}")
        if file.startswith("pipeline/stages/") and name.startswith("pipeline.stages.") and not name.startswith(SHARED):
            found.append(f"{file} imports {name}: stages meet in pipeline/run.py")
    return found


FILES = sorted(str(path.relative_to(ROOT)) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_layers(file: str) -> None:
    assert faults(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipeline/run.py", "import actors.pool"),
        ("pipeline/run.py", "def f():\n    from actors import pool"),
        ("pipeline/cli/main.py", "from cluster.submit import submit"),
        ("pipeline/stages/evolve.py", "from pipeline.stages.collect import PREFIX"),
        ("pipeline/stages/evolve.py", "from pipeline.stages import collect"),
        ("pipeline/execution/protocol.py", "import ray"),
        ("pipeline/bench/fanout.py", "def f():\n    import ray"),
        ("actors/pool.py", "if True:\n    import cluster.submit"),
        ("cluster/submit.py", "import torch.nn"),
        ("configs/__init__.py", "import pipeline"),
    ],
)
def test_wrong_import_is_found(file: str, source: str) -> None:
    assert faults(file, source) != []


def test_no_packages_of_the_pipeline_import_each_other() -> None:
    arrows: dict[str, set[str]] = {}
    for path in (ROOT / "pipeline").glob("*/*.py"):
        ours = path.parent.name
        for name, inside in imports(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] == "pipeline" and len(parts) > 2 and parts[1] != ours and not inside:
                arrows.setdefault(ours, set()).add(parts[1])

    def reached(package: str, seen: frozenset[str] = frozenset()) -> set[str]:
        further = arrows.get(package, set()) - seen
        return further.union(*(reached(each, seen | further) for each in further))

    assert {package for package in arrows if package in reached(package)} == set()


def package_of(name: str) -> str | None:
    """The package of a module of this project, as docs/architecture.md names it without its folder."""
    first, _, rest = name.partition(".")
    if first != "pipeline":
        return first if first in LAYERS else None
    second = rest.partition(".")[0]
    if (ROOT / "pipeline" / second).is_dir() and second:
        return second
    return f"{second}.py" if (ROOT / "pipeline" / f"{second}.py").is_file() else None


def test_import_list_in_the_documentation_is_complete() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## Packages")[2].partition("`tests/` holds")[0]
    listed = {}
    for entry in text.split("\n- ")[1:]:
        about, _, names = " ".join(entry.split()).partition("Imports ")
        package = about.split("`")[1].removeprefix("pipeline/")
        general = {"base"} if package not in ("base", "configs", "simulation") else set()
        without_config = ("base", "config", "configs", "execution", "simulation")
        general |= {"config"} if package not in without_config else set()
        listed[package] = general.union(names.split("`")[1::2])
    found: dict[str, set[str]] = {}
    for file in FILES:
        package = package_of(file.removesuffix(".py").replace("/", ".")) or ""
        imported = {package_of(name) for name, _ in imports(ast.parse((ROOT / file).read_text()))}
        known = found.setdefault(package, set())
        known.update(name for name in imported if name not in (None, package))
    for package in ("", "__init__.py", "__main__.py"):  # of pipeline itself
        found.pop(package, None)
    assert listed == found


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.cli.main",
        "cluster.submit",
        "cluster.spot",
        "actors.worker",
        "pipeline.stages.collect",
        "pipeline.stages.encode",
    ],
)
def test_command_submit_watch_and_collect_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'openvino', 'cma'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
