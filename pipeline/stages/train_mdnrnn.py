"""Stage 4: train M on windows of latents and actions."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base import seeding
from pipeline.base.progress import Update
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import LATENTS, MDNRNN, MDNRNN_WEIGHTS, mdnrnn_weights
from pipeline.data.episodes import LatentEpisode
from pipeline.data.rounds import FIRST, Round, latents_rounds
from pipeline.data.shards import episode_steps, read_latents, records_with_episodes
from pipeline.execution.protocol import Executor, Resources
from pipeline.execution.stage_progress import watched
from pipeline.models import weights
from pipeline.models.mdnrnn import mixture_nll
from pipeline.models.vae import sample_z
from pipeline.stages.description import describe_mdnrnn
from pipeline.stages.table import TRAIN_MDNRNN
from pipeline.storage.manifest import Record, commit, sealed_records
from pipeline.storage.store import Store
from pipeline.training.adam import Adam
from pipeline.training.assessment import assess
from pipeline.training.blocks import BlockStream
from pipeline.training.hardware import check_lstm, gpus_for, precision_name, resolve_device, training_precision
from pipeline.training.held_out import HELD_OUT_OF_M, held_out_of_round, held_out_so_far
from pipeline.training.loop import Fit, Schedule
from pipeline.training.windows import WindowBlock, Windows, num_windows


class MdnRnnObjective:
    """M with its optimiser and loss; see ``pipeline.training.loop.Objective``.

    Args:
        agent: Sections of the agent.
        action_size: Length of an action, A.
        held_out: Held-out windows.
        before: Weights to start from, as safetensors bytes; None: random.
    """

    def __init__(
        self, agent: AgentConfig, action_size: int, held_out: WindowBlock, before: bytes | None = None
    ) -> None:
        self._config = config = agent.mdnrnn
        self._seed = agent.seed
        self._held_out = held_out
        self.device = resolve_device(config.device)
        self.precision = training_precision(config.precision, self.device)
        check_lstm(self.precision, self.device)
        mdnrnn = (
            weights.new_mdnrnn(agent, action_size)
            if before is None
            else weights.load_mdnrnn(agent, action_size, before)
        )
        self.module = mdnrnn.to(self.device)
        self._positive_weight = torch.tensor(config.done_positive_weight, device=self.device)
        self.optimizer = Adam(self.module.parameters(), config.learning_rate)

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
            error = functional.binary_cross_entropy_with_logits(
                prediction.done_logit, done, reduction="none", pos_weight=self._positive_weight
            )
            losses["done"] = _masked_mean(error, real)
            losses["loss"] = losses["loss"] + self._config.done_weight * losses["done"]
        return losses

    def before_step(self) -> None:
        """Clip each element of the gradient, as in the paper's code."""
        torch.nn.utils.clip_grad_value_(self.module.parameters(), self._config.gradient_clip)

    def held_out(self) -> Iterator[tuple[int, Windows]]:
        """See ``Objective.held_out``."""
        size, items = self._config.batch_size, self._held_out.by_length()
        for start in range(0, len(items), size):
            batch = self._held_out.batch(items[start : start + size])
            yield int(batch.has_next.sum()), batch


def _tensors(windows: Windows) -> tuple[Tensor, ...]:
    return tuple(windows)  # type: ignore[arg-type]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # A batch that contains only last rows has no next z: its mean is 0, not 0 / 0.
    return (values * mask).sum() / mask.sum().clamp(min=1)


def train(config: RunConfig, store: Store, at: Round = FIRST) -> Generator[Update, None, Mapping[str, Any]]:
    """Train M and commit its weights; the task for the executor. Returns a summary."""
    prefix, before = at.folder(MDNRNN), at.previous
    records = sealed_records(store, (each.folder(LATENTS) for each in latents_rounds(config.rounds, at)))
    window = config.mdnrnn.window
    example = next(read_latents(store, next(iter(records.values()))))
    action_size = example.actions.shape[1]
    description = describe_mdnrnn(config, action_size)
    if config.mdnrnn.init == "random":
        commit(
            store, prefix, MDNRNN_WEIGHTS, weights.to_bytes(weights.new_mdnrnn(config.agent, action_size), description)
        )
        yield Update(1, 1, {"weights": "untrained"})
        return {"steps": 0, "init": "random"}

    episodes = [episode for record in records.values() for episode in episode_steps(record)]
    fraction = config.mdnrnn.validation_fraction
    left_out = set(held_out_so_far(config, at, fraction, HELD_OUT_OF_M))
    assessed = set(held_out_of_round(config, at, fraction, HELD_OUT_OF_M))

    def read(block: Sequence[Record], wanted: set[int], seed: int) -> WindowBlock:
        episodes = read_latents(store, *records_with_episodes(block, wanted))
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

    def assessed_latents() -> list[LatentEpisode]:
        found = read_latents(store, *records_with_episodes(list(records.values()), assessed))
        return [episode for episode in found if episode.id in assessed]

    held_out_windows = read(list(records.values()), left_out, seeding.derive(config.seed, HELD_OUT_OF_M))
    start = None if before is None else mdnrnn_weights(store, before.folder(MDNRNN))
    objective = MdnRnnObjective(config.agent, action_size, held_out_windows, start)
    fit = Fit(
        store,
        prefix,
        stream,
        objective,
        Schedule.of(config.mdnrnn),
        TRAIN_MDNRNN,
        hardware=f"{objective.device.type} {objective.precision}",
        exact=config.execution.exact,
        continues=at.previous is not None,
    )
    summary = yield from fit.run()
    commit(store, prefix, MDNRNN_WEIGHTS, weights.to_bytes(objective.module, description))
    return {
        **summary,
        "init": "trained",
        "held_out": asdict(assess(objective.module, assessed_latents(), config.seed)),
        "device": str(objective.device),
        "precision": precision_name(objective.precision),
        "storage_wait_s": stream.waiting.seconds,
    }


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Train M as one task, on a GPU if there is one.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    resources = Resources(config.mdnrnn.threads, gpus_for(config.mdnrnn.device, executor))
    with watched(executor, TRAIN_MDNRNN, "step") as show:
        return executor.run(train, config, store, at, resources=resources, on_update=show)
