"""Training loop shared by V and M: epochs, held-out loss, early stopping, checkpoints, exact resume."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pipeline.base.errors import TrainingError
from pipeline.base.exactness import refuse_or_accept
from pipeline.base.progress import Metrics, Update
from pipeline.config.agent import MdnRnnConfig, VaeConfig
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.metrics import MetricsLog, MetricsRow
from pipeline.storage.store import Store
from pipeline.training.blocks import BlockStream

logger = logging.getLogger(__name__)
Batch = TypeVar("Batch")


class Optimizer(Protocol):
    """Optimiser of a module, such as one of torch's."""

    def zero_grad(self) -> None:
        """Remove the gradients."""

    def step(self) -> object:
        """Change the parameters along their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""

    def load_state_dict(self, state: Any, /) -> None:
        """Restore the state."""


class Objective(Protocol[Batch]):
    """A module to train, with its optimiser and losses."""

    @property
    def module(self) -> nn.Module:
        """Module to train."""

    @property
    def optimizer(self) -> Optimizer:
        """Optimiser of the module's parameters."""

    def losses(self, batch: Batch, seed_index: int) -> Mapping[str, Tensor]:
        """Compute the mean losses of a batch.

        Args:
            batch: Batch of the stream or of ``held_out``.
            seed_index: Index that all randomness is derived from.

        Returns:
            0-dimensional means by name; training minimises ``"loss"``.
        """

    def before_step(self) -> None:
        """Called after the gradients are computed and before the optimiser's step."""

    def held_out(self) -> Iterator[tuple[int, Batch]]:
        """Yield the held-out batches, each with its weight in the mean; the same batches in every call."""


@dataclass(frozen=True)
class Schedule:
    """Length of the training, and intervals of metrics and checkpoints.

    Attributes:
        epochs: Maximum number of epochs.
        patience: Epochs without a better held-out loss before stopping early; None to never stop early.
        log_every_steps: Optimiser steps between two rows of metrics.
        checkpoint_every_s: Seconds between checkpoints, in addition to one at the end of each epoch.
    """

    epochs: int
    patience: int | None
    log_every_steps: int
    checkpoint_every_s: float

    @classmethod
    def of(cls, config: VaeConfig | MdnRnnConfig) -> Schedule:
        """Create the schedule of a training stage's config section."""
        return cls(config.epochs, config.patience, config.log_every_steps, config.checkpoint_every_s)


@dataclass
class _State:
    """Progress of the training: the content of a checkpoint in addition to the module and the optimiser."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    finished: bool = False
    best_loss: float = math.inf
    best_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    rows: list[MetricsRow] = field(default_factory=list)


class Fit(Generic[Batch]):
    """Trains an objective on a stream, resuming from the newest checkpoint.

    Args:
        store, prefix: Store and key prefix for checkpoints and metrics.
        stream: Stream of training batches.
        objective: Objective to train.
        schedule: Length of the training, and intervals of metrics and checkpoints.
        name: Name for messages.
        hardware: Device and precision, which determine the bits of the results.
        exact: Whether to refuse a checkpoint that was made on different hardware.
        continues: Whether the module was trained before. Its weights then count as epoch 0, and are kept if no epoch
            has a better held-out loss.

    Raises:
        ConfigError: With ``exact``, the newest checkpoint was made on different hardware.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        stream: BlockStream[Batch],
        objective: Objective[Batch],
        schedule: Schedule,
        name: str,
        *,
        hardware: str = "cpu float32",
        exact: bool = True,
        continues: bool = False,
    ) -> None:
        self._continues = continues
        self._hardware, self._exact = hardware, exact
        self._stream, self._objective, self._schedule, self._name = stream, objective, schedule, name
        self._batches = [stream.num_batches(epoch) for epoch in range(schedule.epochs)]
        self._checkpoints = Checkpoints(store, prefix)
        self._state = _State()
        self._restore()
        self._restored_step = self._state.step
        self._metrics = MetricsLog(store, prefix, self._state.rows)
        self._state.rows = self._metrics.rows
        self._began, self._saved = time.monotonic(), time.monotonic()

    def run(self) -> Generator[Update, None, Mapping[str, Any]]:
        """Train to the end and load the weights with the best held-out loss into the module.

        Yields:
            Progress updates.

        Returns:
            Summary with the keys ``steps``, ``epochs``, ``best_epoch`` (0 for the weights before training) and
            ``loss``.

        Raises:
            TrainingError: A loss or a weight is not finite.
        """
        state, schedule = self._state, self._schedule
        if self._continues and state.step == 0:
            self._score(epoch=-1)
        while not state.finished:
            for batch in self._stream.batches(state.epoch, skip=state.step_in_epoch):
                shown, metrics = self._train_step(batch)
                if state.step % schedule.log_every_steps == 0:
                    yield self._update(shown, metrics)
                if time.monotonic() - self._saved >= schedule.checkpoint_every_s:
                    self._save()
            yield self._update(*self._end_epoch())
            self._save()
        self._objective.module.load_state_dict(state.best_weights)
        return {"steps": state.step, "epochs": state.epoch, "best_epoch": state.best_epoch + 1, "loss": state.best_loss}

    def _train_step(self, batch: Batch) -> tuple[dict[str, str], Metrics]:
        state, objective = self._state, self._objective
        objective.module.train()
        losses = objective.losses(batch, state.step)
        objective.optimizer.zero_grad()
        losses["loss"].backward()
        objective.before_step()
        objective.optimizer.step()
        state.step += 1
        state.step_in_epoch += 1
        if state.step % self._schedule.log_every_steps:
            return {}, {}
        values = {name: float(value.detach()) for name, value in losses.items()}
        self._require_finite(values, "training")
        self._metrics.log(
            state.step, {**values, "epochs": state.epoch + state.step_in_epoch / self._batches[state.epoch]}
        )
        return {"epoch": str(state.epoch + 1), "loss": f"{values['loss']:.4g}"}, {"loss": values["loss"]}

    def _end_epoch(self) -> tuple[dict[str, str], Metrics]:
        state, schedule = self._state, self._schedule
        loss = self._score(state.epoch)
        state.epoch += 1
        state.step_in_epoch = 0
        stalled = schedule.patience is not None and state.epoch - 1 - state.best_epoch >= schedule.patience
        if stalled and state.epoch < schedule.epochs:
            logger.info("%s: stopping early, no better held-out loss in %d epochs", self._name, schedule.patience)
        state.finished = stalled or state.epoch >= schedule.epochs
        return {"epoch": str(state.epoch), "held-out loss": f"{loss:.4g}"}, {"held_out_loss": loss}

    def _score(self, epoch: int) -> float:
        """Compute and log the held-out loss after an epoch, and keep the weights if it is the best."""
        state = self._state
        held_out = self._held_out_losses()
        self._require_finite(held_out, "held-out")
        losses = {f"held_out_{name}": value for name, value in held_out.items()}
        self._metrics.log(state.step, {**losses, "epochs": epoch + 1})
        if held_out["loss"] < state.best_loss:
            state.best_loss, state.best_epoch = held_out["loss"], epoch
            state.best_weights = {k: v.detach().clone() for k, v in self._objective.module.state_dict().items()}
        return held_out["loss"]

    def _held_out_losses(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        weight = 0
        self._objective.module.eval()
        with torch.inference_mode():
            for index, (size, batch) in enumerate(self._objective.held_out()):
                for name, value in self._objective.losses(batch, -1 - index).items():
                    sums[name] = sums.get(name, 0.0) + size * float(value)
                weight += size
        return {name: total / weight for name, total in sums.items()}

    def _require_finite(self, values: Mapping[str, float], which: str) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            raise TrainingError(
                f"{self._name}: the {which} loss is not finite at step {self._state.step} (epoch "
                f"{self._state.epoch + 1}): {dict(values)}. The last checkpoint is unchanged. Use a lower learning "
                "rate, or train in float32, in a new --run-dir."
            )

    def _update(self, shown: Mapping[str, str], metrics: Metrics) -> Update:
        total = sum(self._batches)
        done = total if self._state.finished else self._state.step
        return Update(done, total, shown, restored=self._restored_step, metrics=metrics)

    def _save(self) -> None:
        state = self._state
        # Losses are only checked every few steps; non-finite weights must not get into a checkpoint before that.
        for name, tensor in self._objective.module.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise TrainingError(
                    f"{self._name}: {name} is not finite at step {state.step}. The last checkpoint is unchanged. "
                    "Use a lower learning rate, or train in float32, in a new --run-dir."
                )
        buffer = io.BytesIO()
        torch.save(
            {
                "module": self._objective.module.state_dict(),
                "optimizer": self._objective.optimizer.state_dict(),
                "state": vars(state),
                "hardware": self._hardware,
            },
            buffer,
        )
        self._checkpoints.save(state.step, buffer.getvalue())
        self._metrics.flush()
        self._saved = time.monotonic()

    def _restore(self) -> None:
        latest = self._checkpoints.latest()
        if latest is None:
            return
        step, data = latest
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        if content["hardware"] != self._hardware:
            refuse_or_accept(
                f"{self._name}: the checkpoint was made on {content['hardware']}, not on {self._hardware}",
                f"Resume on {content['hardware']}",
                exact=self._exact,
            )
        self._objective.module.load_state_dict(content["module"])
        self._objective.optimizer.load_state_dict(content["optimizer"])
        self._state = _State(**content["state"])
        logger.info("%s: resuming at step %d (epoch %d)", self._name, step, self._state.epoch + 1)
