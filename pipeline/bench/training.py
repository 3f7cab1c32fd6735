"""Benches of the training steps of V and M."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.base.seeding import generator
from pipeline.base.threads import num_threads
from pipeline.bench.measure import BenchResult, Side, compare
from pipeline.bench.table import TRAIN_MDNRNN, TRAIN_VAE
from pipeline.config.schema import RunConfig
from pipeline.data.episodes import LatentEpisode
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.mdnrnn import mixture_nll
from pipeline.models.vae import frames_to_input, sample_z, vae_loss
from pipeline.models.weights import new_mdnrnn, new_vae
from pipeline.stages.train_mdnrnn import MdnRnnObjective
from pipeline.stages.train_vae import HeldOut, VaeObjective
from pipeline.storage.local import LocalStore
from pipeline.training.hardware import precision_name
from pipeline.training.loop import Objective
from pipeline.training.windows import WindowBlock

_ACTION_SIZE = 3


def _steps(
    objective: Objective,  # type: ignore[type-arg]
    make_batch: Callable[[], object],
    units: int,
) -> Callable[[], int]:
    """Make a function that runs one optimiser step of the pipeline."""
    step = 0

    def work() -> int:
        nonlocal step
        losses = objective.losses(make_batch(), step)
        objective.optimizer.zero_grad()
        losses["loss"].backward()
        objective.before_step()
        objective.optimizer.step()
        step += 1
        return units

    return work


def bench_train_vae(seconds: float) -> BenchResult:
    """Compare a plain float32 step with the pipeline's, at batch size 100."""
    config = RunConfig.model_validate({"vae": {"device": "cpu"}})
    size = config.vae.batch_size
    frames = generator(0, "bench").integers(0, 256, (size, *FRAME_SHAPE), np.uint8)
    objective = VaeObjective(config.agent, HeldOut(LocalStore("."), {}, [], 1))
    plain = new_vae(config.agent)
    optimizer = torch.optim.Adam(plain.parameters(), config.vae.learning_rate, foreach=False)

    def reference() -> int:
        inputs = frames_to_input(frames).contiguous()
        mu, logvar = plain.encode(inputs)
        z = sample_z(mu, logvar, torch.randn(size, plain.z_size))
        reconstruction = plain.decoder(plain.from_z(z)[:, :, None, None])
        optimizer.zero_grad()
        vae_loss(reconstruction, inputs, mu, logvar, config.vae.kl_tolerance).total.backward()
        optimizer.step()
        return size

    with num_threads(config.vae.threads):
        return compare(
            TRAIN_VAE,
            "frames/s",
            Side("torch float32, plain Adam", reference),
            Side(f"the pipeline's, {precision_name(objective.precision)}", _steps(objective, lambda: frames, size)),
            seconds=seconds,
            threads=config.vae.threads,
        )


def bench_train_mdnrnn(seconds: float) -> BenchResult:
    """Compare a plain float32 step with the pipeline's, on 32 windows of 128 steps."""
    config = RunConfig.model_validate({"mdnrnn": {"device": "cpu", "window": 128, "batch_size": 32}})
    size, window, z_size = config.mdnrnn.batch_size, config.mdnrnn.window, config.vae.z_size
    rng = generator(0, "bench")
    rows = size * window + 1
    flags = np.zeros(rows, np.bool_)
    episode = LatentEpisode(
        0,
        0,
        rng.standard_normal((rows, z_size), np.float32),
        np.full((rows, z_size), -2, np.float32),
        rng.random((rows, _ACTION_SIZE), np.float32),
        np.zeros(rows, np.float32),
        flags,
        flags,
    )
    block = WindowBlock([episode], window, rng)
    objective = MdnRnnObjective(config.agent, _ACTION_SIZE, block)
    plain = new_mdnrnn(config.agent, _ACTION_SIZE)
    optimizer = torch.optim.Adam(plain.parameters(), config.mdnrnn.learning_rate, foreach=False)
    items = np.arange(size)

    def reference() -> int:
        batch = block.batch(items)
        mu, logvar = torch.from_numpy(batch.mu), torch.from_numpy(batch.logvar)
        z = sample_z(mu, logvar, torch.randn(mu.shape))
        prediction, _ = plain(z[:, :-1], torch.from_numpy(batch.actions))
        optimizer.zero_grad()
        mixture_nll(prediction.mixture, z[:, 1:]).mean().backward()
        torch.nn.utils.clip_grad_value_(plain.parameters(), config.mdnrnn.gradient_clip, foreach=False)
        optimizer.step()
        return size

    with num_threads(config.mdnrnn.threads):
        return compare(
            TRAIN_MDNRNN,
            "windows/s",
            Side("torch float32, plain Adam", reference),
            Side(
                f"the pipeline's, {precision_name(objective.precision)}",
                _steps(objective, lambda: block.batch(items), size),
            ),
            seconds=seconds,
            threads=config.mdnrnn.threads,
        )
