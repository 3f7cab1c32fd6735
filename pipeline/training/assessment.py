"""Quality of M on held-out episodes: predictions of the next frame, rewards and ends, and whole dreams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.arrays import Array
from pipeline.data.episodes import LatentEpisode
from pipeline.data.quality import THRESHOLDS, Assessment
from pipeline.models.dream import Dream
from pipeline.models.mdnrnn import MdnRnn, mixture_nll
from pipeline.models.torch_forward import TorchDreamStep
from pipeline.models.vae import sample_z

Flags = NDArray[np.bool_]

_MAX_EPISODES = 256
_BATCH = 32
WARM_UP_STEPS = 20
DREAM_STEPS = 50


@torch.inference_mode()
def assess(mdnrnn: MdnRnn, episodes: Sequence[LatentEpisode], seed: int) -> Assessment:
    """Assess M on held-out episodes; on at most 256 of them.

    Args:
        mdnrnn: M, on any device; set to evaluation mode.
        episodes: Episodes that M was not trained on.
        seed: Seed of the latents that are sampled.
    """
    mdnrnn.eval()
    chosen = sorted(episodes[:_MAX_EPISODES], key=len)
    nlls: list[Array] = []
    rewards: list[tuple[Array, Array]] = []
    ends: list[tuple[Array, Flags]] = []
    for first in range(0, len(chosen), _BATCH):
        _predict(mdnrnn, chosen[first : first + _BATCH], seeding.generator(seed, "assess", first), nlls, rewards, ends)
    nll = np.concatenate(nlls) if nlls else np.zeros(0)
    reward_error = correlation = None
    by_threshold: dict[str, tuple[float | None, float | None]] = {}
    if ends:
        probability, true = (np.concatenate(parts) for parts in zip(*ends, strict=True))
        by_threshold = {name: _recall_and_precision(probability > at, true) for name, at in THRESHOLDS.items()}
    recall, precision = by_threshold.get("0.50", (None, None))
    if rewards:
        guessed, earned = (np.concatenate(parts).astype(np.float64) for parts in zip(*rewards, strict=True))
        reward_error = float(np.sqrt(np.square(guessed - earned).mean()))
        if guessed.std() > 0 and earned.std() > 0:
            correlation = float(np.corrcoef(guessed, earned)[0, 1])
    dream_error, copy_error = _drift(mdnrnn, chosen, seed)
    return Assessment(
        episodes=len(chosen),
        nll=float(nll.mean()) if nll.size else None,
        reward_error=reward_error,
        reward_correlation=correlation,
        ends=sum(bool(episode.terminated[-1]) for episode in chosen),
        end_recall=recall,
        end_precision=precision,
        dream_error=dream_error,
        copy_error=copy_error,
        ends_by_threshold=by_threshold,
    )


def _recall_and_precision(predicted: Flags, true: Flags) -> tuple[float | None, float | None]:
    hits = int(np.sum(predicted & true))
    return hits / int(true.sum()) if true.any() else None, hits / int(predicted.sum()) if predicted.any() else None


def _predict(
    mdnrnn: MdnRnn,
    episodes: Sequence[LatentEpisode],
    rng: np.random.Generator,
    nlls: list[Array],
    rewards: list[tuple[Array, Array]],
    ends: list[tuple[Array, Flags]],
) -> None:
    """Append M's predictions for a batch of episodes and the truth, without padding."""
    longest = max(map(len, episodes))

    def padded(arrays: Sequence[Array]) -> torch.Tensor:
        out = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), np.float32)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(out).to(mdnrnn.heads.weight.device)

    mu, logvar = padded([e.mu for e in episodes]), padded([e.logvar for e in episodes])
    noise = torch.from_numpy(rng.standard_normal(mu.shape, np.float32)).to(mu.device)
    z = sample_z(mu, logvar, noise)
    prediction, _ = mdnrnn(z, padded([e.actions for e in episodes]))
    nll = mixture_nll(type(prediction.mixture)(*(part[:, :-1] for part in prediction.mixture)), z[:, 1:]).cpu().numpy()
    for row, episode in enumerate(episodes):
        steps = len(episode)
        nlls.append(nll[row, : steps - 1])
        if prediction.reward is not None:
            rewards.append((prediction.reward[row, :steps].cpu().numpy(), episode.rewards))
        if prediction.done_logit is not None:
            ends.append((prediction.done_logit[row, :steps].sigmoid().cpu().numpy(), episode.terminated))


def _drift(mdnrnn: MdnRnn, episodes: Sequence[LatentEpisode], seed: int) -> tuple[float | None, float | None]:
    """Errors of dreams and of copies of the last frame, see ``Assessment``."""
    long = [episode for episode in episodes if len(episode) > WARM_UP_STEPS + DREAM_STEPS]
    if not long:
        return None, None
    stop = WARM_UP_STEPS + DREAM_STEPS + 1
    mu = np.stack([episode.mu[:stop] for episode in long])
    actions = np.stack([episode.actions[:stop] for episode in long])
    device = mdnrnn.heads.weight.device
    _, (h, c) = mdnrnn(*(torch.from_numpy(part[:, :WARM_UP_STEPS]).to(device) for part in (mu, actions)))
    dream = Dream(TorchDreamStep(mdnrnn, len(long)), len(long))
    seeds = [seeding.derive(seed, "assess/dream", index) for index in range(len(long))]
    dream.reset(mu[:, WARM_UP_STEPS], seeds=seeds, h=h[0].cpu().numpy(), c=c[0].cpu().numpy())
    expected = []
    for step in range(DREAM_STEPS):
        sample = dream.step(actions[:, WARM_UP_STEPS + step])
        mixture = mdnrnn.predict(torch.from_numpy(sample.h).to(device)).mixture
        weights = mixture.logpi.exp()
        expected.append(((weights[..., None, :] if mdnrnn.joint else weights) * mixture.mu).sum(-1).cpu().numpy())
    dreamt = np.stack(expected, axis=1)
    true = mu[:, WARM_UP_STEPS + 1 :]
    copied = mu[:, WARM_UP_STEPS : WARM_UP_STEPS + 1]
    return tuple(float(np.sqrt(np.square(guess - true).mean())) for guess in (dreamt, copied))  # type: ignore[return-value]
