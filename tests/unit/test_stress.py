"""``make stress`` names the failed tests and their number of failures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.stress import ROOT

FLAKY = """
from pathlib import Path

BEFORE = Path(__file__).with_name("before")

def test_that_fails_the_first_time():
    before = BEFORE.exists()
    BEFORE.touch()
    assert before

def test_that_never_fails():
    pass
"""


def stress(path: Path, rounds: int = 1) -> tuple[int, str]:
    options = ["--rounds", str(rounds), "--busy", "1", "--workers", "1"]
    command = [sys.executable, "-m", "tests.stress", *options, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_flaky_test_is_named_with_its_number_of_failures(tmp_path: Path) -> None:
    path = tmp_path / "test_flaky.py"
    path.write_text(FLAKY)
    code, output = stress(path, 2)
    assert code == 1
    assert "round 1 of 2: 1 failed" in output and "round 2 of 2: 0 failed" in output
    assert re.search(r"^failed 1 of 2 times: \S*test_flaky::test_that_fails_the_first_time$", output, re.MULTILINE)
    assert output.splitlines()[-1] == "stress: 2 rounds next to 1 busy processes, 1 flaky tests"
    code, output = stress(path)
    assert code == 0
    assert output.splitlines()[-1] == "stress: 1 rounds next to 1 busy processes, 0 flaky tests"


def test_tests_that_cannot_run_are_no_success(tmp_path: Path) -> None:
    code, output = stress(tmp_path / "nowhere.py")
    assert code == 1
    assert "these are no results" in output
