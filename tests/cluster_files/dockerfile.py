"""Reads the Dockerfile."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property

from tests.cluster_files.documents import ROOT


@dataclass(frozen=True)
class Dockerfile:
    """A parsed Dockerfile."""

    text: str

    @cached_property
    def stages(self) -> list[list[tuple[str, str]]]:
        """(instruction, arguments) in order, for each stage. A stage begins with its FROM."""
        code = re.sub(r"^#.*\n", "", self.text, flags=re.MULTILINE).replace("\\\n", " ")
        stages: list[list[tuple[str, str]]] = []
        for line in filter(str.strip, code.splitlines()):
            instruction, _, rest = line.partition(" ")
            if instruction == "FROM":
                stages.append([])
            stages[-1].append((instruction, " ".join(rest.split())))
        return stages

    def all(self, instruction: str, stage: int = -1) -> list[str]:
        """The arguments of each occurrence of an instruction in a stage."""
        return [rest for name, rest in self.stages[stage] if name == instruction]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the final image."""
        return dict(word.split("=", 1) for line in self.all("ENV") for word in shlex.split(line))


DOCKERFILE = Dockerfile((ROOT / "Dockerfile").read_text())
