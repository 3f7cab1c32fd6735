"""A stop during a finaliser, where Python drops exceptions, still takes effect."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from argparse import Namespace
from types import SimpleNamespace

from pipeline.cli import main as cli

class Stopped:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):  # where the handler gets to run
            pass

def perform(options):
    held = Stopped()
    del held
    time.sleep(600)
    return 0

options = Namespace(command="{command}", perform=perform)
cli.make_parser = lambda: SimpleNamespace(parse_args=lambda arguments: options)
sys.exit(cli.main(["status", "nowhere"]))
"""


@pytest.mark.parametrize(
    ("name", "code", "command", "said"),
    [
        ("SIGTERM", 143, "temperatures", "terminated. Completed work is saved. To resume, run: world-models status"),
        ("SIGINT", 130, "status", "interrupted"),
    ],
)
def test_stop_inside_a_finaliser_is_raised_again(name: str, code: int, command: str, said: str) -> None:
    script = SCRIPT.format(name=name, command=command)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, done.stderr
    assert f"world-models: {said}" in done.stderr
    assert ("To resume" in done.stderr) == (command == "temperatures")
