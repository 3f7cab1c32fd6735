"""The training loop on a small objective: exact resume, early stopping, and NaN values."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.base.errors import ConfigError, DamagedDataError, TrainingError
from pipeline.base.progress import Update
from pipeline.base.seeding import derive
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.local import LocalStore
from pipeline.storage.store import Store
from pipeline.training.loop import Fit, Schedule
from tests.unit.test_blocks import RECORDS, Items, make_stream

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS = 3
NEVER = 1e9


class Killed(BaseException):
    """Stands for the end of the process."""


class Toy:
    """A small network that learns a line, with noise in each step."""

    def __init__(self, hook: Callable[[int], None] = lambda step: None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module: nn.Module = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.module.parameters(), lr=0.05)
        self.hook = hook
        self.trained: list[int] = []
        self.clipped = 0

    def losses(self, batch: Items, seed_index: int) -> Mapping[str, Tensor]:
        if self.module.training:
            self.hook(seed_index)
            self.trained.append(seed_index)
        x = torch.from_numpy(batch % 1000 / 6 - 1).float()[:, None]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(derive(1, "noise", seed_index)))
        loss = (self.module(x + 0.05 * noise) - (1 - x / 2)).square().mean()
        return {"loss": loss, "twice": 2 * loss}

    def before_step(self) -> None:
        self.clipped += 1

    def held_out(self) -> Iterator[tuple[int, Items]]:
        yield 3, np.array([0, 5, 7])
        yield 1, np.array([2])


def make_fit(
    store: Store, toy: Any, prefix: str = "stage", fit: Mapping[str, Any] | None = None, **schedule: Any
) -> Fit[Items]:
    arguments = {"epochs": EPOCHS, "patience": None, "log_every_steps": 3, "checkpoint_every_s": NEVER, **schedule}
    return Fit(store, prefix, make_stream(RECORDS), toy, Schedule(**arguments), "train-toy", **(fit or {}))


def finish(fit: Fit[Items]) -> tuple[list[Update], Mapping[str, Any]]:
    updates = []
    running = fit.run()
    while True:
        try:
            updates.append(next(running))
        except StopIteration as end:
            return updates, end.value


def weights(toy: Toy) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in toy.module.state_dict().items()}


def rows(store: Store, prefix: str = "stage") -> list[dict[str, Any]]:
    """metrics.jsonl without what differs between sessions."""
    lines = [json.loads(line) for line in store.read(f"{prefix}/metrics.jsonl").splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


class Other:
    """An uninterrupted run of the same training as a reference."""

    def __init__(self, store: Store) -> None:
        self.toy = Toy()
        _, self.summary = finish(make_fit(store, self.toy, "other"))
        self.weights = weights(self.toy)
        self.rows = rows(store, "other")


def test_training_lowers_the_held_out_loss_and_reports_it(store: Store) -> None:
    toy = Toy()
    updates, summary = finish(make_fit(store, toy))
    steps = sum(make_stream(RECORDS).num_batches(epoch) for epoch in range(EPOCHS))
    assert toy.trained == list(range(steps)), "one seed per step, each once, in order"
    assert toy.clipped == steps
    assert (summary["steps"], summary["epochs"]) == (steps, EPOCHS)
    assert updates[-1].done == updates[-1].total == steps
    held_out = [row["held_out_loss"] for row in rows(store) if "held_out_loss" in row]
    assert len(held_out) == EPOCHS
    assert held_out[-1] < held_out[0] / 2
    assert summary["loss"] == min(held_out)
    assert [row["step"] for row in rows(store) if "loss" in row] == list(range(3, steps + 1, 3))
    epochs = [row["epochs"] for row in rows(store)]
    assert epochs == sorted(epochs) and 0 < epochs[0] < 1, "progress within the first epoch"
    assert [row["epochs"] for row in rows(store) if "held_out_loss" in row] == list(range(1, EPOCHS + 1))


def test_held_out_loss_is_the_weighted_mean_of_its_batches(store: Store) -> None:
    toy = Toy()
    finish(make_fit(store, toy, epochs=1))
    with torch.no_grad():
        toy.module.eval()
        first, second = (toy.losses(batch, -1 - i)["loss"].item() for i, (_, batch) in enumerate(toy.held_out()))
    (row,) = [row for row in rows(store) if "held_out_loss" in row]
    assert row["held_out_loss"] == pytest.approx((3 * first + 1 * second) / 4, rel=1e-6)
    assert row["held_out_twice"] == pytest.approx(2 * row["held_out_loss"], rel=1e-6)


# ---- resume


def at_step(wanted: int) -> Callable[[int], None]:
    def hook(step: int) -> None:
        if step == wanted:
            raise Killed

    return hook


@pytest.mark.parametrize("checkpoint_every_s", [0.0, NEVER], ids=["at-each-step", "at-each-epoch"])
@pytest.mark.parametrize("killed_at", [1, 11, 12, 13, 27])
def test_killed_training_resumes_with_the_same_bits(store: Store, killed_at: int, checkpoint_every_s: float) -> None:
    other = Other(store)
    with pytest.raises(Killed):
        finish(make_fit(store, Toy(at_step(killed_at)), checkpoint_every_s=checkpoint_every_s))

    toy = Toy()
    _, summary = finish(make_fit(store, toy, checkpoint_every_s=checkpoint_every_s))
    assert weights(toy) == other.weights
    assert summary == other.summary
    assert rows(store) == other.rows, "no point of the metrics is doubled or lost"

    begun_at = toy.trained[0]
    if checkpoint_every_s == 0:
        assert begun_at == killed_at, "the training resumed from the last saved step"
    else:
        ends = np.cumsum([make_stream(RECORDS).num_batches(epoch) for epoch in range(EPOCHS)])
        assert begun_at == max([0, *(int(end) for end in ends if end <= killed_at)])
    assert toy.trained == list(range(begun_at, summary["steps"]))


def test_training_killed_several_times_gives_the_same_weights(store: Store) -> None:
    other = Other(store)
    for killed_at in (5, 6, 20, 31):
        with pytest.raises(Killed):
            finish(make_fit(store, Toy(at_step(killed_at)), checkpoint_every_s=0.0))
    toy = Toy()
    finish(make_fit(store, toy, checkpoint_every_s=0.0))
    assert weights(toy) == other.weights
    assert rows(store) == other.rows


def test_task_closed_between_two_updates_resumes(store: Store) -> None:
    other = Other(store)
    running = make_fit(store, Toy(), checkpoint_every_s=0.0).run()
    for _ in range(4):
        next(running)
    running.close()
    toy = Toy()
    updates, _ = finish(make_fit(store, toy, checkpoint_every_s=0.0))
    assert weights(toy) == other.weights
    assert toy.trained[0] > 0
    assert {update.restored for update in updates} == {toy.trained[0]}, "restored steps do not count for the rate"


def test_damaged_newest_checkpoint_only_costs_time(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    other = Other(store)
    with pytest.raises(Killed):
        finish(make_fit(store, Toy(at_step(30)), checkpoint_every_s=0.0))
    newest = store.list("stage/checkpoints/data/")[-1]
    store.write(newest, store.read(newest)[:-10])
    toy = Toy()
    with caplog.at_level(logging.WARNING):
        finish(make_fit(store, toy, checkpoint_every_s=0.0))
    assert "DAMAGED" in caplog.text
    assert toy.trained[0] == 29
    assert weights(toy) == other.weights


def test_training_without_an_intact_checkpoint_does_not_restart(store: Store) -> None:
    with pytest.raises(Killed):
        finish(make_fit(store, Toy(at_step(30)), checkpoint_every_s=0.0))
    for key in store.list("stage/checkpoints/data/"):
        store.write(key, b"damaged")
    with pytest.raises(DamagedDataError):
        make_fit(store, Toy())


def test_finished_training_does_not_train_again(store: Store) -> None:
    first = Toy()
    _, summary = finish(make_fit(store, first))
    before = rows(store)
    toy = Toy()
    updates, again = finish(make_fit(store, toy))
    assert toy.trained == []
    assert updates == []
    assert again == summary
    assert weights(toy) == weights(first)
    assert rows(store) == before


def test_checkpoint_of_other_hardware_is_refused_for_exact_results(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        finish(make_fit(store, Toy(at_step(20)), fit={"hardware": "cuda bfloat16"}))
    with pytest.raises(ConfigError, match=r"made on cuda bfloat16, not on cpu float32.*execution\.exact=false"):
        make_fit(store, Toy(), fit={"hardware": "cpu float32"})
    with caplog.at_level(logging.WARNING):
        toy = Toy()
        finish(make_fit(store, toy, fit={"hardware": "cpu float32", "exact": False}))
    assert "cuda bfloat16" in caplog.text
    assert toy.trained[0] == 13


# ---- early stop


class Scripted(Toy):
    """A toy with a given list of held-out losses, one per epoch."""

    def __init__(self, held_out_losses: list[float]) -> None:
        super().__init__()
        self.script = iter(held_out_losses)
        self.after_epoch: list[dict[str, bytes]] = []

    def losses(self, batch: Items, seed_index: int) -> Mapping[str, Tensor]:
        if self.module.training:
            return super().losses(batch, seed_index)
        self.after_epoch.append(weights(self))
        return {"loss": torch.tensor(next(self.script))}

    def held_out(self) -> Iterator[tuple[int, Items]]:
        yield 1, np.array([0])


@pytest.mark.parametrize(
    ("patience", "losses", "epochs", "best"),
    [
        (None, [3.0, 1.0, 2.0, 2.0, 2.0, 2.0], 6, 1),
        (2, [3.0, 1.0, 2.0, 2.0, 0.5, 9.0], 4, 1),
        (1, [3.0, 2.0, 1.0, 1.0, 0.5, 0.5], 4, 2),
        (3, [3.0, 1.0, 2.0, 2.0, 0.5, 9.0], 6, 4),
    ],
)
def test_early_stopping_keeps_the_best_weights(
    store: Store, patience: int | None, losses: list[float], epochs: int, best: int
) -> None:
    toy = Scripted(losses)
    _, summary = finish(make_fit(store, toy, epochs=6, patience=patience))
    assert (summary["epochs"], summary["best_epoch"], summary["loss"]) == (epochs, best + 1, losses[best])
    assert weights(toy) == toy.after_epoch[best]
    assert len({json.dumps({k: v.hex() for k, v in w.items()}) for w in toy.after_epoch}) == epochs


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "best"),
    [([1.0, 3.0, 2.0, 1.5], None, 3, 0), ([1.0, 3.0, 2.0], 2, 2, 0), ([1.0, 3.0, 0.5, 2.0], None, 3, 2)],
)
def test_initial_weights_are_kept_if_no_epoch_is_better(
    store: Store, losses: list[float], patience: int | None, epochs: int, best: int
) -> None:
    toy = Scripted(losses)
    _, summary = finish(make_fit(store, toy, patience=patience, fit={"continues": True}))
    assert (summary["epochs"], summary["best_epoch"], summary["loss"]) == (epochs, best, losses[best])
    assert weights(toy) == toy.after_epoch[best]
    held_out = [(row["step"], row["held_out_loss"]) for row in rows(store) if "held_out_loss" in row]
    assert [loss for _, loss in held_out] == losses and held_out[0][0] == 0


@pytest.mark.parametrize("killed_at", [0, 1, 13, 27])
def test_continued_training_resumes_to_the_bit(store: Store, killed_at: int) -> None:
    whole = Toy()
    _, summary = finish(make_fit(store, whole, "whole", fit={"continues": True}))
    with pytest.raises(Killed):
        finish(make_fit(store, Toy(at_step(killed_at)), checkpoint_every_s=0.0, fit={"continues": True}))
    toy = Toy()
    assert finish(make_fit(store, toy, checkpoint_every_s=0.0, fit={"continues": True}))[1] == summary
    assert weights(toy) == weights(whole) == Other(store).weights, "scoring the first weights changes no other"
    assert rows(store) == rows(store, "whole")


def test_patience_is_kept_over_a_resume(store: Store) -> None:
    killed = Scripted([3.0, 1.0, 2.0])
    running = make_fit(store, killed, epochs=6, patience=2).run()
    with pytest.raises(RuntimeError):  # the script is over: the held-out loss of the fourth epoch cannot be had
        list(running)
    toy = Scripted([2.0, 0.1])
    _, summary = finish(make_fit(store, toy, epochs=6, patience=2))
    assert (summary["epochs"], summary["best_epoch"], summary["loss"]) == (4, 2, 1.0)
    assert weights(toy) == killed.after_epoch[1], "the best weights are those of before the kill"


# ---- NaN values


class Poisoned(Toy):
    """A toy whose loss is NaN from some step on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def losses(self, batch: Items, seed_index: int) -> Mapping[str, Tensor]:
        losses = super().losses(batch, seed_index)
        if self.module.training and seed_index >= self.first:
            return {name: value * float("nan") for name, value in losses.items()}
        return losses


def test_nan_loss_stops_the_training_and_names_the_step(store: Store) -> None:
    with pytest.raises(TrainingError, match=r"train-toy.* step 6 .*nan"):
        finish(make_fit(store, Poisoned(5)))  # checked every third step
    assert all(np.isfinite(value) for row in rows(store) for value in row.values())


@pytest.mark.parametrize("log_every_steps", [1, 3, 10_000])
def test_nan_weights_never_reach_a_checkpoint(local_store: LocalStore, log_every_steps: int) -> None:
    """If every step is saved, the last checkpoint precedes the NaN, however often losses are checked."""
    with pytest.raises(TrainingError):
        finish(make_fit(local_store, Poisoned(20), checkpoint_every_s=0.0, log_every_steps=log_every_steps))
    latest = Checkpoints(local_store, "stage").latest()
    assert latest is not None
    assert latest[0] == 20
    toy = Toy()
    finish(make_fit(local_store, toy, checkpoint_every_s=0.0))
    assert weights(toy) == Other(local_store).weights, "a healthy run resumes from it"


def test_nan_held_out_loss_stops_the_training(store: Store) -> None:
    with pytest.raises(TrainingError, match=r"held-out loss is not finite"):
        finish(make_fit(store, Scripted([1.0, float("nan")])))
    latest = Checkpoints(store, "stage").latest()
    assert latest is not None
    assert latest[0] == make_stream(RECORDS).num_batches(0)


def test_toy_model_is_sensitive_to_batch_order_and_noise(store: Store) -> None:
    """The tests of resuming rely on this."""

    def trained(seed: int, offset: int) -> dict[str, bytes]:
        toy = Toy()
        for step, batch in enumerate(make_stream(RECORDS, seed=seed).batches(0)):
            toy.optimizer.zero_grad()
            toy.losses(batch, step + offset)["loss"].backward()
            toy.optimizer.step()
        return weights(toy)

    assert trained(1, 0) == trained(1, 0)
    assert trained(1, 0) != trained(2, 0)
    assert trained(1, 0) != trained(1, 1)
