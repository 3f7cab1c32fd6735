"""Upload of a pack to the Hugging Face Hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.extras import import_extra
from pipeline.data.artifacts import EVALUATION, EVOLUTION, MDNRNN, VAE
from pipeline.storage.layout import CARD, CONFIG, ROUND, own_keys
from pipeline.storage.maintenance import check_run
from pipeline.storage.store import Store

_FOLDERS = (VAE, MDNRNN, EVOLUTION, EVALUATION)  # folders of a pack
_URL = re.compile(r"hf://([\w.-]+/[\w.-]+)", re.ASCII)


def repository_of(url: str) -> str:
    """Name of the repository, USER/NAME, that ``hf://USER/NAME`` means.

    Raises:
        ConfigError: The URL has another form.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigError(f"--to {url}: expected hf://USER/NAME, the name of a repository on the Hugging Face Hub")
    return found[1]


def push(store: Store, repository: str, *, private: bool) -> str:
    """Upload a pack as one commit, after every byte of it is verified; returns the address of the commit.

    The repository is made if it does not exist. Files of an earlier pack in it are replaced.

    Args:
        store: Store of the pack.
        repository: Repository as USER/NAME.
        private: Whether a new repository is private.

    Raises:
        ConfigError: huggingface_hub is not installed.
        StorageError: The folder is no pack or is damaged, or the upload fails; the message says what to do.
    """
    hub = import_extra("huggingface_hub", "hub", "world-models push")
    if not store.exists(CARD):
        raise StorageError(f"{store.locate()} is no pack: it has no {CARD}. Make one with `world-models pack`.")
    if problems := check_run(store).problems:
        raise StorageError(f"{store.locate()} is damaged and was not uploaded: {problems[0]}")
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as folder:
        for key in own_keys(store):
            path = Path(folder, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read(key))
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Upload an agent of world-models-ray",
                delete_patterns=[CARD, CONFIG, *(f"{folder}/*" for folder in _FOLDERS), f"{ROUND}*"],
            )
        except Exception as error:  # from the hub, its protocol or the network
            raise StorageError(
                f"the upload to {api.endpoint}/{repository} failed: {type(error).__name__}: {_words(error)}\n"
                f"{_next_step(error)}; then run the same command again"
            ) from error
    address: str = done.commit_url
    return address


def _words(error: Exception) -> str:
    """The whole text of an error, without empty lines: the hub names the cause in the last lines."""
    return "\n".join(line.rstrip() for line in str(error).splitlines() if line.strip()) or "no details"


def _next_step(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
    if isinstance(error, ValueError):  # from the hub's check of the card or the name
        return f"Correct {CARD} of the pack" if CARD in str(error) else "Choose another name in --to"
    return "See that the hub can be reached and is the one that you mean (HF_ENDPOINT)"
