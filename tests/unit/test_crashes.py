"""A test that ends its process takes no other test with it, and is not run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.stress import ROOT

TESTS = """
import os
from pathlib import Path

RUNS = Path(__file__).with_name("runs")

def test_before():
    pass

def test_that_ends_its_process():
    RUNS.write_text(RUNS.read_text() + "x" if RUNS.exists() else "x")
    os._exit(1)

def test_after():
    pass
"""


def test_other_tests_run_after_one_that_ends_its_process(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.crashes import pytest_runtest_protocol, pytest_runtest_setup\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ("-n2", "--dist=loadfile", "--max-worker-restart=8", "-p", "no:cacheprovider", "-o", "addopts=", "-rA")
    command = (sys.executable, "-m", "pytest", *options, f"--basetemp={tmp_path}/temporary", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    passed = {line.rpartition("::")[2] for line in done.stdout.splitlines() if line.startswith("PASSED")}
    assert passed == {"test_before", "test_after"}, done.stdout
    assert "the process that ran this test before has ended" in done.stdout
    assert (tmp_path / "runs").read_text() == "x", "it ran once"
