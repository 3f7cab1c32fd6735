"""Agents that come with this package, as runs that can be read and not written."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NoReturn

from pipeline.base.errors import ConfigError, StorageError
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore

PRETRAINED = "pretrained:"


class PretrainedStore(LocalStore):
    """Store of an agent that comes with this package.

    Args:
        root: Path of its folder.
        name: Name of the agent.
    """

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root)
        self._name = name

    def write(self, key: str, data: bytes) -> None:
        """Refuse the write."""
        self._refuse()

    def create(self, key: str, data: bytes) -> None:
        """Refuse the write."""
        self._refuse()

    def append(self, key: str, data: bytes, present: int) -> None:
        """Refuse the write."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Refuse the removal."""
        self._refuse()

    @property
    def refusal(self) -> str:
        """Message to who tries to write."""
        return (
            f"{PRETRAINED}{self._name} comes with the package and cannot be changed: copy it first, `world-models "
            f"storage copy {PRETRAINED}{self._name} runs/{self._name}`"
        )

    def _refuse(self) -> NoReturn:
        raise StorageError(self.refusal)


def folder_of_pretrained() -> Path:
    """Folder of the agents that come with this package; each lies in a folder of its name."""
    return Path(str(resources.files("pipeline"))) / "pretrained"


def pretrained_names() -> list[str]:
    """Names of the agents that come with this package."""
    return sorted(path.parent.name for path in folder_of_pretrained().glob(f"*/{CONFIG}"))


def open_pretrained(name: str) -> PretrainedStore:
    """Open an agent that comes with this package.

    Raises:
        ConfigError: There is no agent of this name; the message lists the names, or says how to make an agent.
    """
    names = pretrained_names()
    if name not in names:
        present = (
            f"The agents that come with this package: {', '.join(f'{PRETRAINED}{each}' for each in names)}"
            if names
            else "No agent comes with this package. Name the folder of a run or of a pack in its place, or make a run "
            "with `world-models run`"
        )
        raise ConfigError(f"{PRETRAINED}{name}: there is no such agent. {present}")
    return PretrainedStore(folder_of_pretrained() / name, name)
