"""Frames from the observations of the games themselves, for agents outside the pipeline's own environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import EnvConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.frames import MIN_SIDE, is_image, to_frame, to_rgb
from pipeline.envs.registry import CAR_RACING, TAKE_COVER

_EXPECTED = (
    f"expected one image, uint8 (H, W, 3) with at least {MIN_SIDE}x{MIN_SIDE} pixels, or a Dict with one, or with the "
    "entry env.frame_key. If the run's frames were drawn by render(), pass env.render()"
)


def frame_of(observation: Any, env: EnvConfig) -> NDArray[np.uint8]:
    """Frame that the pipeline's environment makes of an observation.

    Args:
        observation: Image as the game returns it, or a Dict with one: (96, 96, 3) uint8 of CarRacing-v3, the whole
            screen of ViZDoom, any image of another environment, or the picture of ``render()`` where observations are
            no images. For CarRacing-v3 and TakeCover also a frame, (64, 64, 3) uint8, which stays as it is.
        env: Section ``env`` of the run that trained the agent.

    Raises:
        ValueError: The observation holds no such image.
    """
    if isinstance(observation, Mapping):
        observation = _image_in(observation, env)
    try:
        image = to_rgb(np.asarray(observation))
    except TypeError:
        array = np.asarray(observation)
        raise ValueError(f"the observation is {array.dtype} {array.shape}: {_EXPECTED}") from None
    ours = env.id in (CAR_RACING, TAKE_COVER)
    if ours and image.shape == FRAME_SHAPE:
        return image
    if env.id == CAR_RACING:
        from pipeline.envs.car_sprites import OBSERVATION_SHAPE, reduce_observation

        if image.shape != OBSERVATION_SHAPE:
            raise ValueError(
                f"the observation is {image.shape}: expected {OBSERVATION_SHAPE}, as CarRacing-v3 returns it, or a "
                f"frame, {FRAME_SHAPE}"
            )
        return reduce_observation(image, env.view)
    if env.id == TAKE_COVER:
        from pipeline.envs.take_cover import frame_of_screen

        return frame_of_screen(image)
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"the observation is {np.shape(observation)}: {_EXPECTED}")
    return to_frame(image, env.crop)


def rows_of(observation: Any) -> list[Any] | None:
    """Observations of a batch, one for each row; None for a single observation.

    Args:
        observation: A list of observations, an array (N, H, W, 3), or a Dict of such arrays, as Gymnasium's vector
            environments return it.
    """
    if isinstance(observation, list | tuple):
        return list(observation)
    if isinstance(observation, Mapping):
        of_entries = {key: rows_of(entry) for key, entry in observation.items()}
        rows = {key: entries for key, entries in of_entries.items() if entries is not None}
        if not rows:
            return None
        return [dict(zip(rows, entries, strict=True)) for entries in zip(*rows.values(), strict=True)]
    return list(observation) if getattr(observation, "ndim", 0) == 4 else None


def _image_in(observation: Mapping[str, Any], env: EnvConfig) -> Any:
    """Image in a Dict observation: the entry ``env.frame_key``, or else the only one that looks like an image."""
    if env.frame_key is not None:
        if env.frame_key not in observation:
            raise ValueError(f"the observation has no entry {env.frame_key!r}: it has {', '.join(observation)}")
        return observation[env.frame_key]
    arrays = {key: entry for key, entry in observation.items() if isinstance(entry, np.ndarray)}
    images = [key for key, entry in arrays.items() if is_image(entry.shape, entry.dtype)]
    if len(images) != 1:
        raise ValueError(f"the observation has {len(images)} entries that are images: {_EXPECTED}")
    return observation[images[0]]
