"""On a real GPU: `make gpu` runs this and prints its numbers as JSON. Skipped where torch finds no CUDA device.

V and M have the paper's sizes for TakeCover. Shards are CarRacing's at random, whose frames cost as much to train on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.envs.registry import traits_of
from pipeline.evolution.pools import run_dreams
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Resources
from pipeline.models.controller import ControllerShape
from pipeline.models.torch_forward import TorchDreamStep
from pipeline.models.weights import load_mdnrnn, new_mdnrnn, to_bytes
from pipeline.rollouts.dreaming import GPU_BATCH, Starts
from pipeline.rollouts.jobs import RolloutJob
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import require_manifest
from pipeline.training.windows import num_windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

CONFIG = RunConfig.model_validate(
    {
        "name": "gpu",
        "collect": {"policy": "brownian", "episodes": 120, "episode_steps": 500, "episodes_per_shard": 10},
        "vae": {"z_size": 64, "epochs": 4, "device": "cuda"},
        "mdnrnn": {"hidden_size": 512, "window": 500, "epochs": 20, "done_weight": 1.0, "device": "cuda"},
        "controller": {"features": "zch", "bias": False},
        "dream": {"device": "cuda"},
        "execution": {"executor": "in-process"},
    }
)


def say(**numbers: Any) -> None:
    """Print numbers; with -s they are seen."""
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}))


@contextmanager
def utilization() -> Iterator[list[float]]:
    """Samples of the share of time that the GPU is busy, by nvidia-smi; none where that is missing."""
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not over.wait(0.25):
            done = subprocess.run(query, capture_output=True, text=True, check=True)
            samples.append(float(done.stdout.split()[0]) / 100)

    thread = threading.Thread(target=sample)
    if shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield samples
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with frames."""
    folder = tmp_path_factory.mktemp("gpu")
    store = LocalStore(folder)
    store.write("config.yaml", dump(CONFIG).encode())
    run_stages(CONFIG, store, InProcessExecutor(), STAGES[:1])
    return folder


def test_v_and_m_train_from_shards(run: Path) -> None:
    store = LocalStore(run)
    collected = require_manifest(store, "rollouts").records.values()
    windows = sum(num_windows(steps, CONFIG.mdnrnn.window) for each in collected for _, steps in each.info["episodes"])
    frames = sum(record.rows for record in require_manifest(store, "rollouts").records.values())
    for stage, epochs in ((STAGES[1], CONFIG.vae.epochs), (STAGES[2], 0), (STAGES[3], CONFIG.mdnrnn.epochs)):
        began = time.monotonic()
        with utilization() as busy:
            run_stages(CONFIG, store, InProcessExecutor(), [stage])
        seconds = time.monotonic() - began
        if not epochs:
            continue
        info = require_manifest(store, stage.prefix).info
        assert info["device"].startswith("cuda") and np.isfinite(info["loss"])
        say(
            stage=stage.name, frames_per_s=epochs * frames / seconds, steps=info["steps"], seconds=seconds,
            windows_per_s=epochs * windows / seconds if stage.name == "train-mdnrnn" else None,
            precision=info["precision"], storage_wait_s=info["storage_wait_s"],
            gpu_busy=float(np.mean(busy)) if busy else None,
        )  # fmt: skip


def test_dream_step_equals_the_one_on_the_cpu() -> None:
    data = to_bytes(new_mdnrnn(CONFIG.agent, 3))
    here = TorchDreamStep(load_mdnrnn(CONFIG.agent, 3, data), 32, 1.15)
    there = TorchDreamStep(load_mdnrnn(CONFIG.agent, 3, data).cuda(), 32, 1.15)
    rng = np.random.default_rng(0)
    z, action, h, c, noise = (rng.standard_normal((32, width), np.float32) for width in (64, 3, 512, 512, 64))
    uniform = rng.random((32, 64), np.float32)
    for one, other in zip(here(z, action, h, c, uniform, noise), there(z, action, h, c, uniform, noise), strict=True):
        if one is not None and other is not None:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_bits_of_a_dream_do_not_depend_on_its_neighbours_or_its_row() -> None:
    data = to_bytes(new_mdnrnn(CONFIG.agent, 3))
    step = TorchDreamStep(load_mdnrnn(CONFIG.agent, 3, data).cuda(), GPU_BATCH, 1.15)
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((GPU_BATCH, width), np.float32) for width in (64, 3, 512, 512)]
    rows += [rng.random((GPU_BATCH, 64), np.float32), rng.standard_normal((GPU_BATCH, 64), np.float32)]
    whole = [None if part is None else part.copy() for part in step(*rows)]
    order = rng.permutation(GPU_BATCH)
    mixed = [array[order] for array in rows]
    for array in mixed:
        array[7:] = rng.random(array[7:].shape, np.float32)  # other neighbours
    for one, other in zip(whole, step(*mixed), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one[order[:7]].tobytes() == other[:7].tobytes()


def test_generation_of_64_candidates_with_16_dreams() -> None:
    actions = traits_of(CONFIG.env).actions
    mdnrnn = new_mdnrnn(CONFIG.agent, actions.size)
    with torch.no_grad():
        mdnrnn.heads.bias[-1] = -50.0  # the logit of an end: all dreams have one length
    shape = ControllerShape.of_agent(CONFIG.agent, actions.size)
    candidates = np.random.default_rng(0).normal(0, 0.1, (64, shape.num_parameters)).astype(np.float32)
    jobs = [
        RolloutJob("train", 1, candidate, episode, 0, episode, parameters, max_steps=600)
        for candidate, parameters in enumerate(candidates)
        for episode in range(16)
    ]
    starts = Starts(*np.zeros((2, 1, CONFIG.vae.z_size), np.float32))
    task = (run_dreams, jobs, CONFIG.agent, CONFIG.dream, actions, to_bytes(mdnrnn), starts)
    for _ in range(2):  # the first one compiles and allocates
        began = time.monotonic()
        with utilization() as busy:
            found = InProcessExecutor().run(*task, resources=Resources(gpus=1), on_update=lambda _: None)
        seconds = time.monotonic() - began
    steps = sum(result.steps for _, result in found)
    assert len(found) == 1024 and steps == 1024 * 600
    say(
        generation="64 x 16 dreams of 600 steps", seconds=seconds, steps_per_s=steps / seconds,
        gpu_busy=float(np.mean(busy)) if busy else None,
    )  # fmt: skip
