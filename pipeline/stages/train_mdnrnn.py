"""Stage 4: train M on windows of latents and actions."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.base import seeding
from pipeline.base.progress import Update
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import LATENTS, MDNRNN, MDNRNN_WEIGHTS
from pipeline.data.episodes import LatentEpisode
from pipeline.data.shards import episode_steps, read_latents, with_any
from pipeline.execution.protocol import Executor, Resources
from pipeline.execution.watching import watched
from pipeline.models import weights
from pipeline.models.mdnrnn import mixture_nll
from pipeline.models.vae import sample_z
from pipeline.stages.description import describe_mdnrnn
from pipeline.storage.manifest import Record, commit, require_manifest
from pipeline.storage.store import Store
from pipeline.training.blocks import BlockStream, held_out_episodes
from pipeline.training.hardware import check_lstm, gpus_for, precision_name, resolve_device, resolve_precision
from pipeline.training.loop import Fit, Schedule

PREFIX = MDNRNN

Array = NDArray[np.float32]


class Windows(NamedTuple):
    """Batch of B windows of T steps. Each step of a window is one row of a shard.

    Attributes:
        mu, logvar: Latent distributions, (B, T + 1, Z) float32; the last step is only a target.
        actions: Actions, (B, T, A) float32.
        rewards: Rewards, (B, T) float32.
        done: 1 where the environment terminated, else 0, (B, T) float32.
        real: 0 where an episode shorter than the window was padded, else 1, (B, T) float32.
        has_next: 1 where there is a next z to predict (not at an episode's last row), else 0, (B, T) float32.
    """

    mu: Array
    logvar: Array
    actions: Array
    rewards: Array
    done: Array
    real: Array
    has_next: Array


def num_windows(steps: int, window: int) -> int:
    """Number of windows in an episode: as many as fit without overlap, at least one (padded)."""
    return max(1, steps // window)


class WindowBlock:
    """Windows of a block of episodes.

    The windows of an episode are contiguous; the offset of the first is drawn again each epoch, so that every row is
    used.

    Args:
        episodes: Latent episodes, at least one.
        window: Steps per window, T.
        rng: Random stream that draws the offsets.
    """

    def __init__(self, episodes: Sequence[LatentEpisode], window: int, rng: np.random.Generator) -> None:
        self._window = window
        self._items: list[tuple[LatentEpisode, int]] = []
        for episode in episodes:
            count = num_windows(len(episode), window)
            slack = max(0, len(episode) - count * window)
            first = int(rng.integers(0, slack + 1))
            self._items += [(episode, first + index * window) for index in range(count)]

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, items: NDArray[np.int64]) -> Windows:
        """See ``LoadedBlock.batch``."""
        size, length = len(items), self._window
        example = self._items[0][0]
        z_size, action_size = example.mu.shape[1], example.actions.shape[1]
        mu = np.zeros((size, length + 1, z_size), np.float32)
        logvar = np.zeros_like(mu)
        actions = np.zeros((size, length, action_size), np.float32)
        rewards, done, real, has_next = (np.zeros((size, length), np.float32) for _ in range(4))
        for row, item in enumerate(items):
            episode, start = self._items[item]
            rows = min(length, len(episode) - start)
            targets = min(length + 1, len(episode) - start)
            mu[row, :targets] = episode.mu[start : start + targets]
            logvar[row, :targets] = episode.logvar[start : start + targets]
            actions[row, :rows] = episode.actions[start : start + rows]
            rewards[row, :rows] = episode.rewards[start : start + rows]
            done[row, :rows] = episode.terminated[start : start + rows]
            real[row, :rows] = 1
            has_next[row, : targets - 1] = 1
        return Windows(mu, logvar, actions, rewards, done, real, has_next)


class MdnRnnObjective:
    """M with its optimiser and loss; see ``pipeline.training.loop.Objective``.

    Args:
        config: Config of the run.
        action_size: Length of an action, A.
        held_out: Held-out windows.
    """

    def __init__(self, config: RunConfig, action_size: int, held_out: WindowBlock) -> None:
        self._config = config.mdnrnn
        self._seed = config.seed
        self._held_out = held_out
        self.device = resolve_device(config.mdnrnn.device)
        self.precision = resolve_precision(config.mdnrnn.precision, self.device)
        check_lstm(self.precision, self.device)
        self.module = weights.new_mdnrnn(config.agent, action_size).to(self.device)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=config.mdnrnn.learning_rate, fused=True)

    def losses(self, batch: Windows, seed_index: int) -> Mapping[str, Tensor]:
        """See ``Objective.losses``."""
        windows = Windows(*(torch.from_numpy(array).to(self.device) for array in batch))  # type: ignore[arg-type]
        mu, logvar, actions, rewards, done, real, has_next = _tensors(windows)
        # z is sampled from (mu, logvar) again each time a window is used (section A.3), against overfitting.
        seed = seeding.derive(self._seed, "mdnrnn/noise", seed_index)
        noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        z = sample_z(mu, logvar, noise)
        # The heads and the likelihood stay in float32: bfloat16 is too coarse for narrow mixture components.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision is torch.bfloat16):
            hidden, _ = self.module.lstm(torch.cat([z[:, :-1], actions], dim=-1))
        prediction = self.module.predict(hidden.float())
        nll = _masked_mean(mixture_nll(prediction.mixture, z[:, 1:]), has_next)
        losses = {"loss": nll, "nll": nll}
        if prediction.reward is not None:
            losses["reward"] = _masked_mean((prediction.reward - rewards).square(), real)
            losses["loss"] = losses["loss"] + self._config.reward_weight * losses["reward"]
        if prediction.done_logit is not None:
            error = functional.binary_cross_entropy_with_logits(prediction.done_logit, done, reduction="none")
            losses["done"] = _masked_mean(error, real)
            losses["loss"] = losses["loss"] + self._config.done_weight * losses["done"]
        return losses

    def before_step(self) -> None:
        """Clip each element of the gradient, as in the paper's code."""
        torch.nn.utils.clip_grad_value_(self.module.parameters(), self._config.gradient_clip)

    def held_out(self) -> Iterator[tuple[int, Windows]]:
        """See ``Objective.held_out``."""
        size = self._config.batch_size
        for start in range(0, len(self._held_out), size):
            batch = self._held_out.batch(np.arange(start, min(start + size, len(self._held_out))))
            yield int(batch.has_next.sum()), batch


def _tensors(windows: Windows) -> tuple[Tensor, ...]:
    return tuple(windows)  # type: ignore[arg-type]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # A batch that contains only last rows has no next z: its mean is 0, not 0 / 0.
    return (values * mask).sum() / mask.sum().clamp(min=1)


def train(config: RunConfig, store: Store) -> Generator[Update, None, Mapping[str, Any]]:
    """Train M and commit its weights; the task for the executor. Returns a summary."""
    records = require_manifest(store, LATENTS).records
    window = config.mdnrnn.window
    example = next(read_latents(store, next(iter(records.values()))))
    action_size = example.actions.shape[1]
    description = describe_mdnrnn(config, action_size)
    if config.mdnrnn.init == "random":
        commit(
            store, PREFIX, MDNRNN_WEIGHTS, weights.to_bytes(weights.new_mdnrnn(config.agent, action_size), description)
        )
        yield Update(1, 1, {"weights": "untrained"})
        return {"steps": 0, "init": "random"}

    episodes = [episode for record in records.values() for episode in episode_steps(record)]
    held_out = held_out_episodes(episodes, config.mdnrnn.validation_fraction, config.seed, "mdnrnn/held-out")
    left_out = set(held_out)

    def read(block: Sequence[Record], wanted: set[int], seed: int) -> WindowBlock:
        episodes = read_latents(store, *with_any(block, wanted))
        found = [episode for episode in episodes if episode.id in wanted]
        return WindowBlock(found, window, seeding.generator(seed, "windows"))

    stream = BlockStream(
        records,
        items_of=lambda episode, steps: 0 if episode in left_out else num_windows(steps, window),
        load=lambda block, seed: read(block, set(episodes) - left_out, seed),
        batch_size=config.mdnrnn.batch_size,
        block_items=max(1, config.mdnrnn.shuffle_frames // window),
        seed=config.seed,
        purpose="mdnrnn",
    )
    held_out_windows = read(list(records.values()), left_out, seeding.derive(config.seed, "mdnrnn/held-out"))
    objective = MdnRnnObjective(config, action_size, held_out_windows)
    fit = Fit(
        store,
        PREFIX,
        stream,
        objective,
        Schedule.of(config.mdnrnn),
        "train-mdnrnn",
        hardware=f"{objective.device.type} {objective.precision}",
        exact=config.execution.exact,
    )
    summary = yield from fit.run()
    commit(store, PREFIX, MDNRNN_WEIGHTS, weights.to_bytes(objective.module, description))
    return {
        **summary,
        "init": "trained",
        "device": str(objective.device),
        "precision": precision_name(objective.precision),
        "storage_wait_s": stream.waiting.seconds,
    }


def run(config: RunConfig, store: Store, executor: Executor) -> Mapping[str, Any]:
    """Train M as one task, on a GPU if there is one."""
    resources = Resources(config.mdnrnn.threads, gpus_for(config.mdnrnn.device, executor))
    with watched(executor, "train-mdnrnn", "step") as show:
        return executor.run(train, config, store, resources=resources, on_update=show)
