"""Two different runs on one cluster at the same time do not affect each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from tests.e2e import command


@pytest.mark.usefixtures("local_ray")
def test_two_concurrent_runs_give_the_same_results_as_alone(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    drivers, alone = {}, {}
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        preset = command.counting_preset(folder, seed=seed)
        code, output = command.run("run", preset, "--run-dir", str(folder / "alone"))
        assert code == 0, output
        alone[seed] = command.outcome(folder / "alone")
        settings = ("executor=ray", f"ray_address={address}", "workers=1")
        on_cluster = (part for setting in settings for part in ("-o", f"execution.{setting}"))
        drivers[seed] = ("run", preset, "--run-dir", str(folder / "beside"), *on_cluster)
    running = {seed: command.Command(*arguments) for seed, arguments in drivers.items()}
    for seed, driver in running.items():
        code, output = driver.finish()
        assert code == 0, output
        assert command.outcome(tmp_path / str(seed) / "beside") == alone[seed]
    assert alone[1] != alone[2]
