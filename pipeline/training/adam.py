"""Adam (Kingma & Ba 2015) by torch's fused kernel, without ``torch.optim``'s classes.

Their import loads torch's compiler, which is not used here: about 1.4 s of CPU time in each training process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """The optimiser of V and M, with torch's defaults; the same bits as ``torch.optim.Adam(fused=True)``.

    Args:
        parameters: Parameters to train; a step needs a gradient of each.
        learning_rate: See the attribute.

    Attributes:
        learning_rate: Step size; it may be changed between steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._parameters = list(parameters)
        self._means = [torch.zeros_like(each) for each in self._parameters]
        self._squares = [torch.zeros_like(each) for each in self._parameters]
        self._steps = [torch.zeros((), device=each.device) for each in self._parameters]

    def zero_grad(self) -> None:
        """Remove the gradients."""
        for each in self._parameters:
            each.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters along their gradients."""
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        assert len(gradients) == len(self._parameters), "the loss depends on every parameter"
        adam(
            list(self._parameters), gradients, self._means, self._squares, [], self._steps,
            fused=True, foreach=False, amsgrad=False, beta1=0.9, beta2=0.999, lr=self.learning_rate, weight_decay=0.0,
            eps=1e-8, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Moments and steps, for a checkpoint."""
        return {"means": self._means, "squares": self._squares, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore moments and steps."""
        for name, own in self.state_dict().items():
            for target, source in zip(own, state[name], strict=True):
                target.copy_(source)
