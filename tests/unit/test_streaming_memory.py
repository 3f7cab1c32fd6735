"""Training on frames holds only a few blocks in memory, for any number of frames."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.artifacts import ROLLOUTS, shard_name
from pipeline.data.episodes import Episode
from pipeline.data.frames import FRAME_SIZE
from pipeline.data.shards import episodes_to_bytes
from pipeline.stages import train_vae
from pipeline.storage.manifest import Manifest, commit, read_records, seal
from pipeline.storage.run_dir import open_store
from pipeline.storage.store import Store
from tests.counting import counting_config

STATUS = Path("/proc/self/status")

STEPS = 100  # per episode
EPISODES_PER_SHARD = 2
SHUFFLE_FRAMES = 1_000
NUM_FRAMES = 12_000  # twelve times as many
SLACK_BYTES = 32 * 2**20  # the shards that are read ahead, a batch, and what allocators keep

# The block in use and the one that is read meanwhile.
BOUND_BYTES = 2 * SHUFFLE_FRAMES * FRAME_SIZE + SLACK_BYTES


def write_frames(store: Store, num_frames: int) -> None:
    """A sealed collect stage whose episodes have constant frames."""
    for shard in range(num_frames // (STEPS * EPISODES_PER_SHARD)):
        first = shard * EPISODES_PER_SHARD
        zeros, flags = np.zeros((STEPS, 2), np.float32), np.zeros(STEPS, np.bool_)
        episodes = [
            Episode(e, e, pixels, zeros, zeros[:, 0], flags, flags, final_frame=pixels[-1])
            for e in range(first, first + EPISODES_PER_SHARD)
            for pixels in [np.full((STEPS, 64, 64, 3), e % 251, np.uint8)]
        ]
        counts = [[episode.id, len(episode)] for episode in episodes]
        commit(store, ROLLOUTS, shard_name(shard), episodes_to_bytes(episodes), rows=200, episodes=counts)
    seal(store, ROLLOUTS, Manifest("collect", {}, {}, {}, read_records(store, ROLLOUTS), {}))


class TinyObjective:
    """An objective in place of V's: the test is about the stream of frames, not about learning."""

    frames_seen = 0

    def __init__(self, config: Any, held_out: train_vae.HeldOut, before: bytes | None = None) -> None:
        self.device = torch.device("cpu")
        self.precision = torch.float32
        self.module = _Tiny(1, 1)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-3)
        self._held_out = held_out

    def losses(self, batch: Any, seed_index: int) -> Mapping[str, Tensor]:
        if self.module.training:
            TinyObjective.frames_seen += len(batch)
        return {"loss": self.module(torch.full((1, 1), float(batch.mean()) / 255)).square().mean()}

    def before_step(self) -> None:
        """Do nothing."""

    def held_out(self) -> Iterator[tuple[int, Any]]:
        for frames in self._held_out.frames():
            if len(frames):
                yield len(frames), frames


class _Tiny(torch.nn.Linear):
    def calibrate(self, frames: Tensor) -> None:
        """Do nothing: nothing needs a calibration."""


def peak_bytes() -> int:
    """The peak memory of this process since its exec."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    return int(kilobytes) * 1024


def train(run_dir: str, shuffle_frames: int, num_frames: int) -> None:
    config = counting_config(
        {
            "collect.episodes": num_frames // STEPS,
            "vae.shuffle_frames": shuffle_frames,
            "vae.batch_size": 100,
            "vae.epochs": 1,
            "vae.validation_fraction": 0.05,
            "vae.max_validation_frames": 300,
            "mdnrnn.validation_fraction": 0.5,
        }
    )
    for _ in train_vae.train(config, open_store(run_dir)):
        pass


def measure(small: str, large: str) -> None:
    """Print the growth of peak memory for the stream, then for a stream with a single block."""
    train_vae.VaeObjective = TinyObjective  # type: ignore[assignment,misc]
    train_vae.picture_of_reconstructions = lambda *_: b""
    train(small, 200, 2_000)
    gc.collect()
    before, result = peak_bytes(), {}
    for name, shuffle_frames in (("streamed", SHUFFLE_FRAMES), ("whole", NUM_FRAMES)):
        TinyObjective.frames_seen = 0
        train(large, shuffle_frames, NUM_FRAMES)
        result[name] = {"grown_bytes": peak_bytes() - before, "frames": TinyObjective.frames_seen}
        store = open_store(large)
        for key in store.list("vae/"):
            store.delete(key)
    print(json.dumps(result))


@pytest.mark.skipif(not STATUS.is_file(), reason="peak memory is read from /proc")
def test_streaming_needs_only_the_memory_of_two_blocks(store: Store) -> None:
    small, large = f"{store.locate()}/small", f"{store.locate()}/large"
    write_frames(open_store(small), 2_000)
    write_frames(open_store(large), NUM_FRAMES)
    code = f"from tests.unit.test_streaming_memory import measure\nmeasure({small!r}, {large!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(row["frames"] > 0.85 * NUM_FRAMES for row in result.values()), "all of the set was trained on"
    assert result["streamed"]["grown_bytes"] < BOUND_BYTES < result["whole"]["grown_bytes"]
