"""The card of a pack: how the agent was made, on what, how it scores, and how to use it and make it again."""

from __future__ import annotations

import json
from typing import Any

from pipeline.base.formatting import duration, score, size
from pipeline.data.artifacts import EVOLUTION
from pipeline.sharing.example import example
from pipeline.sharing.licences import header_of
from pipeline.sharing.pack import Pack
from pipeline.storage.manifest import require_manifest
from pipeline.storage.pretrained import PRETRAINED
from pipeline.storage.store import Store

# Strings are quoted: a name may look like a number.
_HEADER = """\
---
{license_header}
library_name: world-models-ray
tags: [world-models, reinforcement-learning, {quoted_env}]
model-index:
- name: {quoted_name}
  results:
  - task: {{type: reinforcement-learning, name: reinforcement-learning}}
    dataset: {{name: {quoted_env}, type: {quoted_env}}}
    metrics: [{{type: mean_reward, value: "{mean:.1f} +/- {sd:.1f}", name: mean_reward}}]
---
"""

_PAGE = """\
# {name}: World Models for {env}

VAE, MDN-RNN and controller of World Models (Ha & Schmidhuber 2018), trained with world-models-ray.

## Score

{mean:.1f} +- {sd:.1f} (95 % interval of the mean {low:.1f} to {high:.1f}; lowest {min:.1f}) on {episodes} test tracks,
from seed {first_track:,} on. None of them was used for training or selection. The episodes are in `evaluation/`.

They were played with the weights in these files ({precision}). The run itself, in float32, scores {own_mean:.1f} on the
same tracks: a difference of {difference:+.1f} (95 % interval {difference_low:+.1f} to {difference_high:+.1f}).

## Use

Where world-models-ray is installed, and `{where}` is {place}:

```python
{example}```

It prints the return on the first test track.

```
world-models evaluate --agent {where} --run-dir runs/{name}-again
```

## How it was made

| | |
|---|---|
| environment | {env} |
| seed | {seed} |
| rounds | {round} |
| V | {z_size} latent dimensions |
| M | {hidden_size} units, {mixtures} Gaussians |
| C | {features}, {generations:,} generations of {population:,} x {candidate_episodes} episodes in the {scored_in} |
| environment steps | {env_steps:,.0f} |
| time | {seconds} |
| CPU | {cpu} |
| code | {code_version} |
| libraries | {versions} |

Make it again, with `config.yaml` of this folder:

```
world-models run config.yaml --run-dir runs/{name}
world-models pack runs/{name} --name {name}
```

With the same code and libraries, on the same kind of CPU, the run gives the same bits.

## Licence

{license}
"""


def card(pack: Pack, store: Store, where: str, license_id: str) -> str:
    """Write the card of a pack in Markdown, with a header that model hubs read.

    Args:
        pack: Facts about the pack.
        store: Store of the pack.
        where: Location by which others load it.
        license_id: SPDX identifier of the licence of the weights.
    """
    config = pack.config
    evolution = require_manifest(store, pack.round.folder(EVOLUTION)).info
    env_id = config.env.id
    made = pack.made_with
    facts: dict[str, Any] = {
        **{key: pack.score[key] for key in ("mean", "sd", "low", "high", "min", "episodes")},
        "license": license_id,
        "license_header": header_of(license_id),
        "name": pack.name,
        "quoted_name": json.dumps(pack.name),
        "env": env_id.rpartition(":")[2],
        "quoted_env": json.dumps(env_id.rpartition(":")[2]),
        "where": where,
        "place": "the agent of this name that comes with it" if where.startswith(PRETRAINED) else "this folder",
        "example": example(config, where),
        "precision": pack.precision,
        "own_mean": pack.own["mean"],
        "difference": pack.difference.mean,
        "difference_low": pack.difference.low,
        "difference_high": pack.difference.high,
        "first_track": config.tracks.test.start,
        "seed": config.seed,
        "round": pack.round.number,
        "z_size": config.vae.z_size,
        "hidden_size": config.mdnrnn.hidden_size,
        "mixtures": config.mdnrnn.mixtures,
        "features": config.controller.features,
        "generations": evolution["generations"],
        "population": config.evolve.population_size,
        "candidate_episodes": config.evolve.episodes,
        "scored_in": "dream" if config.evolve.environment == "dream" else "game",
        "env_steps": pack.whole_run["env_steps"],
        "seconds": duration(pack.whole_run["seconds"]),
        "cpu": made["cpu"],
        "code_version": made["code_version"],
        "versions": ", ".join(f"{library} {version}" for library, version in made["versions"].items()),
    }
    return (_HEADER + _PAGE).format(**facts)


def summary(pack: Pack, where: str, size_bytes: int) -> str:
    """Describe a finished pack in a few lines."""
    difference = pack.difference
    return (
        f"{pack.name}: return {score(pack.score)} on {pack.score['episodes']} test tracks, "
        f"with weights in {pack.precision}\n"
        f"the run itself: {pack.own['mean']:.1f}; difference {difference.mean:+.1f} (95 % interval "
        f"{difference.low:+.1f} to {difference.high:+.1f})\n"
        f"{size(size_bytes)} in {where}"
    )
