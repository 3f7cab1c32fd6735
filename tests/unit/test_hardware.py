"""Precisions that a CPU lacks are refused with their key."""

from __future__ import annotations

import pytest
import torch

from pipeline.base.errors import ConfigError
from pipeline.execution.in_process import InProcessExecutor
from pipeline.training import hardware
from tests.counting import counting_config
from tests.unit.test_mdnrnn import objective


def test_precision_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "runs_lstm", lambda precision: precision is torch.float32)
    assert objective(precision="float32").precision is torch.float32
    said = r"mdnrnn.precision = 'bfloat16', but torch cannot compute an LSTM in it on this CPU .*: choose 'auto' or"
    said += " 'float32'"
    with pytest.raises(ConfigError, match=said):
        objective(precision="bfloat16")
    with pytest.raises(ConfigError, match=said):
        hardware.check_devices(
            counting_config({"mdnrnn.precision": "bfloat16", "mdnrnn.device": "cpu"}),
            InProcessExecutor(),
            ["mdnrnn"],
        )
