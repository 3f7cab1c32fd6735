"""The README of an exported agent, with an example of its loop in Python."""

from __future__ import annotations

from pipeline.config.schema import RunConfig
from pipeline.envs.registry import traits_of
from pipeline.export.graph import OPSET

TITLE = "# An agent of World Models in ONNX"


def readme(config: RunConfig, controller: str, agent: str) -> str:
    """Text of the README.

    Args:
        config: Config of the run.
        controller: Name of the controller.
        agent: Digest of the agent, as in the metadata of the files.
    """
    hidden, repeat = config.mdnrnn.hidden_size, config.env.action_repeat
    held = f" for {repeat} steps" if repeat > 1 else ""
    sampled = config.controller.z == "sample"
    noise = " + np.exp(logvar / 2) * rng.standard_normal(mu.shape, np.float32)" if sampled else ""
    features = ", ".join(f"`{name}`" for name in config.controller.features)
    heads = [("reward", config.mdnrnn.reward_weight), ("end_logit", config.mdnrnn.done_weight)]
    optional = "".join(f", `{name}`" for name, weight in heads if weight > 0)
    return f"""\
{TITLE}

Run `{config.name}` in {config.env.id}, controller `{controller}`, agent `{agent}`, opset {OPSET}. All numbers are
float32, except the encoder's frames. The first dimension of each input and output is the batch.

| file | takes | gives |
|---|---|---|
| `encoder.onnx` | `frames` (N, 64, 64, 3) uint8 RGB | `mu`, `logvar` |
| `controller.onnx` | {features} | `action` |
| `mdnrnn.onnx` | `z`, `action`, `h`, `c` | `next_h`, `next_c`, `logpi`, `mu`, `log_sigma`{optional} |
| `decoder.onnx` | `z` | `frames` (N, 64, 64, 3) RGB in [0, 1] |

The entry `world_models` of a file's metadata is JSON. It says how frames are cut from the game's, and what an action
is: {traits_of(config.env).actions.formula}. The entry `agent` is the same in the files of one agent.

```python
import numpy as np
import onnxruntime

networks = "encoder", "controller", "mdnrnn"
encoder, controller, mdnrnn = (onnxruntime.InferenceSession(f"{{name}}.onnx") for name in networks)
features = [each.name for each in controller.get_inputs()]
rng = np.random.default_rng(1)


def next_frame(action):  # the game: replace this
    return rng.integers(0, 256, (64, 64, 3), np.uint8)


frame = next_frame(None)
h = c = np.zeros((1, {hidden}), np.float32)  # when an episode begins
for _ in range(10):
    mu, logvar = encoder.run(["mu", "logvar"], {{"frames": frame[None]}})
    state = {{"z": mu{noise}, "h": h, "c": c}}
    (action,) = controller.run(["action"], {{name: state[name] for name in features}})
    frame = next_frame(action[0])  # take the action{held}
    h, c = mdnrnn.run(["next_h", "next_c"], {{**state, "action": action}})
```
"""
