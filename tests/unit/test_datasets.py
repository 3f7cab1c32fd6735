"""Folders of Parquet files, read with the README's example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.dataset as ds
import pytest

from pipeline.config.schema import RunConfig
from pipeline.data.shards import read_episodes
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from tests.made_run import make_config, put_data, put_evaluation

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def config() -> RunConfig:
    return make_config()


@pytest.fixture
def smoke(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A made run at the path of the README's example."""
    store = LocalStore(tmp_path / "runs/tiny")
    put_data(store, config)
    put_evaluation(store, 6, {"mean": [1.0, 2.0]})
    put_evaluation(store, 6, {"mean": [1.0, 2.0, 3.0]})  # of more episodes, the first two once more
    monkeypatch.chdir(tmp_path)
    return store


def test_readme_example_works_as_written(smoke: LocalStore) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "pandas" in block]
    names: dict[str, Any] = {}
    exec(example, names)
    scores, steps = names["scores"], names["steps"]
    assert isinstance(scores, pandas.DataFrame)
    assert scores.episode_return.tolist() == [1.0, 2.0, 3.0]
    episodes = [e for record in read_records(smoke, "rollouts").values() for e in read_episodes(smoke, record)]
    assert len(steps) == sum(map(len, episodes))
    assert steps.groupby("episode_id").reward.sum().tolist() == pytest.approx([e.rewards.sum() for e in episodes])
    np.testing.assert_array_equal(names["frame"], episodes[0].frames[0])


@pytest.mark.parametrize("folder", ["rollouts/data", "latents/data", "evaluation/data"])
def test_data_folder_holds_only_parquet_files(smoke: LocalStore, folder: str) -> None:
    keys = smoke.list(f"{folder}/")
    assert keys and all(key.endswith(".parquet") for key in keys)
    assert ds.dataset(f"runs/tiny/{folder}").count_rows() > 0
