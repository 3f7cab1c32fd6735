"""The example of a card: Python that loads the agent and plays an episode, for the environment that it was made in."""

from __future__ import annotations

from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.envs.gymnasium_env import RENDERED, plugin_of
from pipeline.envs.registry import CAR_RACING, is_of_gymnasium, traits_of

_IN_GYMNASIUM = """\
import gymnasium{imports}
from pipeline.agent import Agent

agent = Agent.load("{where}")
env = gymnasium.make({arguments})
observation, _ = env.reset(seed={seed})
agent.reset(seed={seed})
total, over = 0.0, False
while not over:
    observation, reward, terminated, truncated, _ = env.step(agent.act({seen}))
    total, over = total + reward, terminated or truncated
print(total)
"""

# The agent holds no action here: the environment of the pipeline does.
_IN_PIPELINE = """\
from pipeline.agent import Agent
from pipeline.envs.registry import make_environment

agent = Agent.load("{where}", own_frames=True)
env = make_environment(agent.config.test_env)
frame = env.reset({seed})
agent.reset(seed={seed})
total, over = 0.0, False
while not over:
    agent.act(frame)
    frame, reward, terminated, truncated = env.step(agent.action)
    total, over = total + reward, terminated or truncated
env.close()
print(total)
"""


def example(config: RunConfig, where: str) -> str:
    """Write code that plays the first test episode and prints its return.

    Args:
        config: Config of the agent's run.
        where: Location of the agent, for ``Agent.load``.
    """
    env, seed = config.env, config.tracks.test.start
    if env.id != CAR_RACING and not is_of_gymnasium(env.id):
        return _IN_PIPELINE.format(where=where, seed=seed)
    rendered = traits_of(env).frames.get("from") == RENDERED
    arguments: dict[str, Any] = {"max_episode_steps": env.max_episode_steps}
    if env.domain_randomize:
        arguments["domain_randomize"] = True
    if rendered:
        arguments["render_mode"] = "rgb_array"
    arguments |= env.options
    plugin = plugin_of(env.id)
    return _IN_GYMNASIUM.format(
        imports="" if plugin is None else f"\nimport {plugin.module}  # registers the environment",
        where=where,
        arguments=", ".join([f'"{env.id}"', *(f"{name}={value!r}" for name, value in arguments.items())]),
        seed=seed,
        seen="env.render()" if rendered else "observation",
    )
