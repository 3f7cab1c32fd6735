"""Stand-ins for the commands of a cluster: they record their calls and run the script of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This PATH has no Ray or SLURM of the machine.
_SYSTEM = "/usr/bin:/bin"

_RECORD = """\
#!{python} -S
import json, os, sys
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
line = json.dumps([call, {{name: os.environ.get(name) for name in {variables}}}])
with open({log!r}, "a") as file:
    file.write(line + chr(10))
"""


@dataclass(frozen=True)
class Call:
    """One call of a stand-in: its words and its environment variables."""

    words: list[str]
    environment: dict[str, str | None]


class StandIns:
    """A folder of commands for the front of PATH."""

    def __init__(self, folder: Path, variables: tuple[str, ...]) -> None:
        self._bin, self._log = folder / "bin", folder / "calls.jsonl"
        self._bin.mkdir()
        self._record = folder / "record"
        text = _RECORD.format(python=sys.executable, variables=list(variables), log=str(self._log))
        self._record.write_text(text)

    def add(self, name: str, script: str = "") -> None:
        """Add or replace a command. It records its call and then runs a bash script."""
        recorder = self._bin / f".record-{name}" / name
        recorder.parent.mkdir(exist_ok=True)
        recorder.write_text(self._record.read_text())
        recorder.chmod(0o755)
        command = self._bin / name
        command.write_text(f'#!/bin/bash\n"{recorder}" "$@"\n{script}\n')
        command.chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        """Variables of a process that finds the stand-ins and no other command of a cluster."""
        home = str(self._bin.parent)
        return {"PATH": f"{self._bin}:{_SYSTEM}", "HOME": home, "TMPDIR": home, **variables}

    def calls(self, name: str | None = None) -> list[Call]:
        """All calls in order, or only the calls of one command."""
        if not self._log.exists():
            return []
        lines: list[Any] = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [Call(words, seen) for words, seen in lines if name in (None, words[0])]


def option(words: list[str], name: str) -> str:
    """The value of a long option, as ``--name value`` or ``--name=value``."""
    for index, word in enumerate(words):
        if word == name:
            return words[index + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise AssertionError(f"no {name} in {words}")


def after(words: list[str], separator: str) -> list[str]:
    """The words after the first one that equals ``separator``."""
    return words[words.index(separator) + 1 :]


def shellcheck(script: str, *arguments: str) -> str:
    """The findings of shellcheck for a script; empty if it is clean."""
    command = [str(Path(sys.executable).parent / "shellcheck"), "--shell=bash", *arguments, "-"]
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout
