"""Adam equals torch's to the bit, without importing torch's compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from pipeline.training.adam import Adam


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def losses(network: nn.Module, count: int, first: int = 0) -> list[torch.Tensor]:
    found = []
    for index in range(first, first + count):
        torch.manual_seed(100 + index)
        found.append(network(torch.randn(11, 5)).square().mean())
    return found


def train(network: nn.Module, optimizer: object, count: int, first: int = 0) -> None:
    for index in range(first, first + count):
        (loss,) = losses(network, 1, index)
        optimizer.zero_grad()  # type: ignore[attr-defined]
        loss.backward()
        optimizer.step()  # type: ignore[attr-defined]


def bits(network: nn.Module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in network.parameters()]


def test_adam_equals_torch_to_the_bit() -> None:
    ours, torchs = module(), module()
    train(ours, Adam(ours.parameters(), 1e-2), 20)
    train(torchs, torch.optim.Adam(torchs.parameters(), lr=1e-2, fused=True), 20)
    assert bits(ours) == bits(torchs) != bits(module())


def test_adam_resumes_from_its_state() -> None:
    whole, parts = module(), module()
    train(whole, Adam(whole.parameters(), 1e-2), 20)
    first = Adam(parts.parameters(), 1e-2)
    train(parts, first, 8)
    resumed = Adam(parts.parameters(), 1e-2)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    train(parts, resumed, 12, first=8)
    assert bits(parts) == bits(whole)


def test_training_stage_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.execution.in_process import InProcessExecutor\n"
        "from pipeline.run import run_stages; from pipeline.stages.table import STAGES\n"
        "from pipeline.storage.local import LocalStore; from tests.counting import counting_config\n"
        "run_stages(counting_config(), LocalStore(sys.argv[1]), InProcessExecutor(), STAGES[:4])\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
