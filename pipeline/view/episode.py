"""An episode as pictures: the scene, what V sees, V's reconstruction, and M's dream of the same episode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.agent import Agent
from pipeline.base.arrays import Picture
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.registry import make_environment
from pipeline.models.steered_dream import SteeredDream
from pipeline.rollouts.tiles import composed, fitted

HEIGHT = 480  # height of a picture, in pixels
_SCENE_WIDTH = 720
_DREAM_STEPS = 50  # after which the dream begins again at the present moment
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Shot:
    """A picture of an episode.

    Attributes:
        picture: Picture, (480, W, 3) uint8 RGB.
        steps: Steps of the environment so far, as the evaluation counts them: ``env.action_repeat`` for each action.
        episode_return: Return so far.
    """

    picture: Picture
    steps: int
    episode_return: float


def episode_shots(
    trained: TrainedAgent, track: int, *, dream: bool, every: int = 1, temperature: float = 1.0
) -> Iterator[Shot]:
    """Run an episode as the evaluation does and yield its pictures.

    On the test tracks the return is that of the evaluation. The dream takes the same actions as the agent; it begins at
    the present moment, and again every 50 actions.

    Args:
        trained: Weights and controllers of a run.
        track: Track seed.
        dream: Whether M's dream is shown too.
        every: Actions from one picture to the next.
        temperature: Uncertainty of the dream.
    """
    config = trained.config
    agent, env = Agent(trained, own_frames=True), make_environment(config.test_env)
    try:
        frame, over, steps, total = env.reset(track), False, 0, 0.0
        agent.reset(track)
        dreaming: SteeredDream | None = None
        actions = 0
        while not over:
            agent.act(frame)
            if dream and actions % _DREAM_STEPS == 0:
                dreaming, dreamt = agent.begin_dream(temperature, seed=actions), agent.z[None]
            if actions % every == 0:
                tiles = {"V sees": agent.frame, "V's picture of z": agent.reconstruct()}
                if dreaming is not None:
                    tiles["M dreams"] = agent.decode(dreamt)[0]
                yield Shot(_compose(env.render(), tiles, f"{total:.0f}"), steps, total)
            if dreaming is not None:
                dreamt = dreaming.step(agent.action).z
            step = env.step(agent.action)
            actions += 1
            steps += config.env.action_repeat
            frame, total = step.frame, total + step.reward
            over = step.terminated or step.truncated
        yield Shot(_compose(env.render(), {**tiles, "V sees": frame}, f"{total:.0f}"), steps, total)
    finally:
        env.close()


def _compose(scene: Picture, tiles: dict[str, Picture], text: str) -> Picture:
    """Scene with a text on the left; on the right the tiles with their names."""
    picture = np.array(composed(fitted(scene, (_SCENE_WIDTH, HEIGHT)), [*tiles.values()]))
    _write(picture, text, (12, 32), 0.9)
    for row, name in enumerate(tiles):
        _write(picture, name, (_SCENE_WIDTH + 6, row * (HEIGHT // len(tiles)) + 18), 0.45)
    return picture


def _write(picture: Picture, text: str, at: tuple[int, int], scale: float) -> None:
    """Write white on a black edge, which is legible on every ground."""
    x, y = at
    edge = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    for place, color in (*((each, (0, 0, 0)) for each in edge), (at, (255, 255, 255))):
        cv2.putText(picture, text, place, _FONT, scale, color, 1, cv2.LINE_AA)
