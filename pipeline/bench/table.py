"""The benches, by name, with one line for people. Reading this table imports none of them, and so no torch."""

from __future__ import annotations

GENERATION, FIDELITY, FANOUT = "generation", "fidelity", "fanout"

# Benches that drive the controllers of a run.
NEED_A_RUN = {GENERATION, FIDELITY}

HELP = {
    "env": "Gymnasium's CarRacing-v3 beside ours, a core",
    "agent": "the naive agent loop beside a rollout worker, a core",
    GENERATION: "one generation of 64 x 16 episodes on all cores, around the controllers of a run",
    FIDELITY: "the best controller of a run on both drawings and at every precision of V's encoder",
    "collect": "the environment alone beside collecting frames into shards, a core",
    "train-vae": "a plain training step of V beside the pipeline's",
    "train-mdnrnn": "a plain training step of M beside the pipeline's",
    "dream": "one dream at a time beside many, a core",
    "storage": "numpy files beside shards",
    FANOUT: "how busy the pool keeps many workers, whose episodes are simulated; about 20 minutes",
}
