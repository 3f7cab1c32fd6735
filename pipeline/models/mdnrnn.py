"""M: the MDN-RNN (World Models, section A.3), an LSTM that predicts a mixture density of the next latent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Tensor, Tensor]


class Mixture(NamedTuple):
    """Density of the next z.

    Attributes:
        logpi: Log mixture weights, normalised over the last axis: (..., Z, K) factored, (..., K) joint; float.
        mu: Means, (..., Z, K) float.
        log_sigma: Log standard deviations, (..., Z, K) float.
    """

    logpi: Tensor
    mu: Tensor
    log_sigma: Tensor


class Prediction(NamedTuple):
    """Prediction of the next step.

    Attributes:
        mixture: Density of the next z.
        reward: Predicted reward, (...) float; None if there is no reward head.
        done_logit: Logit of the episode's end, (...) float; None if there is no done head.
    """

    mixture: Mixture
    reward: Tensor | None
    done_logit: Tensor | None


class Sample(NamedTuple):
    """Sample of the next step.

    Attributes:
        z: Next latent, (..., Z) float.
        reward, done_logit: Values as in ``Prediction``.
    """

    z: Tensor
    reward: Tensor | None
    done_logit: Tensor | None


class MdnRnn(nn.Module):
    """The LSTM and its heads.

    Args:
        z_size: Number of latent dimensions, Z.
        action_size: Length of an action, A.
        hidden_size: Size of the hidden state, H.
        mixtures: Number of components, K: per latent dimension (factored) or in total (joint).
        mixture: Kind of mixture: one per latent dimension (``"factored"``, as in the paper) or one for all
            (``"joint"``).
        log_sigma_bounds: Soft lower and upper bounds of log sigma, which bound the likelihood.
        reward_head, done_head: Whether to predict rewards and the episode's end.
    """

    def __init__(
        self,
        *,
        z_size: int,
        action_size: int,
        hidden_size: int,
        mixtures: int,
        mixture: Literal["factored", "joint"] = "factored",
        log_sigma_bounds: tuple[float, float] = (-7.0, 7.0),
        reward_head: bool = False,
        done_head: bool = False,
    ) -> None:
        super().__init__()
        self.z_size, self.action_size = z_size, action_size
        self.hidden_size, self.mixtures = hidden_size, mixtures
        self.joint = mixture == "joint"
        self.log_sigma_bounds = log_sigma_bounds
        self.reward_head, self.done_head = reward_head, done_head
        self.lstm = nn.LSTM(z_size + action_size, hidden_size, batch_first=True)
        logpi_size = mixtures if self.joint else z_size * mixtures
        self._sizes = [logpi_size, z_size * mixtures, z_size * mixtures, int(reward_head), int(done_head)]
        self.heads = nn.Linear(hidden_size, sum(self._sizes))

    def initial_state(self, batch_size: int) -> State:
        """Create the initial h and c, zeros, (1, B, H) float."""
        zeros = self.heads.weight.new_zeros(1, batch_size, self.hidden_size)
        return zeros, zeros

    def forward(self, z: Tensor, action: Tensor, state: State | None = None) -> tuple[Prediction, State]:
        """Predict the next step for each step of a sequence.

        Args:
            z: Latents, (B, T, Z) float.
            action: Actions, (B, T, A) float.
            state: State h and c, each (1, B, H) float; zeros if None.

        Returns:
            Prediction with leading axes (B, T), and the state after the last step.
        """
        hidden, state = self.lstm(torch.cat([z, action], dim=-1), state)
        return self.predict(hidden), state

    def predict(self, hidden: Tensor) -> Prediction:
        """Apply the heads to hidden states, (..., H) float; the prediction has the same leading axes."""
        (logits, mu, log_sigma), reward, done_logit = self._outputs(hidden)
        mixture = Mixture(functional.log_softmax(logits, dim=-1), mu, self._bound(log_sigma))
        return Prediction(mixture, reward, done_logit)

    def sample(self, hidden: Tensor, temperature: float, uniform: Tensor, noise: Tensor) -> Sample:
        """Sample from the prediction, without computing the density of components that are not drawn.

        Args:
            hidden: Hidden states, (..., H) float.
            temperature: Temperature as in ``sample_mixture``.
            uniform: Uniform random numbers as in ``sample_mixture``.
            noise: Standard normal random numbers as in ``sample_mixture``.
        """
        mixture, reward, done_logit = self._outputs(hidden)
        return Sample(sample_mixture(mixture, temperature, uniform, noise, self._bound), reward, done_logit)

    def _outputs(self, hidden: Tensor) -> Prediction:
        """Raw outputs of the heads: logits are not normalised, log sigma is not bounded."""
        logits, mu, log_sigma, reward, done_logit = self.heads(hidden).split(self._sizes, dim=-1)
        shape = (*hidden.shape[:-1], self.z_size, self.mixtures)
        return Prediction(
            Mixture(logits if self.joint else logits.reshape(shape), mu.reshape(shape), log_sigma.reshape(shape)),
            reward.squeeze(-1) if self.reward_head else None,
            done_logit.squeeze(-1) if self.done_head else None,
        )

    def _bound(self, log_sigma: Tensor) -> Tensor:
        return _soft_clamp(log_sigma, *self.log_sigma_bounds)


def _soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp with a gradient everywhere, so that no unit is stuck at a bound (Chua et al. 2018, appendix A.1)."""
    x = high - functional.softplus(high - x)
    # Near high, the second softplus adds log(1 + exp(low - high)); the scale keeps the upper bound exact even if the
    # bounds are close together.
    scale = (high - low) / math.log1p(math.exp(high - low)) if high - low < 30 else 1.0
    return low + functional.softplus(x - low) * scale


def mixture_nll(mixture: Mixture, z: Tensor) -> Tensor:
    """Negative log-likelihood of z, in nats per latent dimension (section A.3; Bishop 1994, equation 29).

    Args:
        mixture: Mixture with leading axes (...).
        z: Latents, (..., Z) float.

    Returns:
        Mean over latent dimensions, (...) float.
    """
    logpi, mu, log_sigma = mixture
    scaled = (z[..., None] - mu) * torch.exp(-log_sigma)
    log_normal = -0.5 * scaled.square() - log_sigma - 0.5 * math.log(2 * math.pi)
    if logpi.dim() == mu.dim():
        return -torch.logsumexp(logpi + log_normal, dim=-1).mean(dim=-1)
    return -torch.logsumexp(logpi + log_normal.sum(dim=-2), dim=-1) / z.shape[-1]


def sample_mixture(
    mixture: Mixture,
    temperature: float,
    uniform: Tensor,
    noise: Tensor,
    bound: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sample a next z (section A.3: the temperature divides the mixture's logits and multiplies its variances).

    Args:
        mixture: Mixture with leading axes (...); logpi need not be normalised.
        temperature: Temperature; 1.0 is M's own density, higher values are more uncertain.
        uniform: Random numbers in [0, 1) that pick the components: (..., Z) factored, (...) joint; float.
        noise: Standard normal random numbers, (..., Z) float.
        bound: Elementwise function to apply to log_sigma; None if it is already bounded.

    Returns:
        Next latent z, (..., Z) float.
    """
    logpi, mu, log_sigma = mixture
    # Faster than softmax: over this few components, softmax alone takes longer than this whole function.
    weights = torch.exp((logpi - logpi.amax(dim=-1, keepdim=True)) / temperature)
    cumulative = weights.cumsum(dim=-1)
    chosen = (cumulative[..., :-1] <= uniform[..., None] * cumulative[..., -1:]).sum(dim=-1, keepdim=True)
    if logpi.dim() < mu.dim():
        chosen = chosen[..., None, :].expand(*mu.shape[:-1], 1)
    mean, log_sigma = (parameter.gather(-1, chosen).squeeze(-1) for parameter in (mu, log_sigma))
    if bound is not None:
        log_sigma = bound(log_sigma)
    return mean + log_sigma.exp() * math.sqrt(temperature) * noise
