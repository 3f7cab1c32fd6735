"""Names and descriptions of the benches. Importing this table imports none of them, and so no torch."""

from __future__ import annotations

ENV, AGENT, GENERATION, FIDELITY = "env", "agent", "generation", "fidelity"
COLLECT, TRAIN_VAE, TRAIN_MDNRNN = "collect", "train-vae", "train-mdnrnn"
DREAM, STORAGE, FANOUT = "dream", "storage", "fanout"

# Benches that measure the controllers of a run.
NEED_A_RUN = {GENERATION, FIDELITY}

HELP = {
    ENV: "Gymnasium's CarRacing-v3 and ours, on one core",
    AGENT: "the naive agent loop and a rollout worker, on one core",
    GENERATION: "one generation of 64 x 16 episodes on up to 32 cores, from the search distribution of a run",
    FIDELITY: "the best controller of a run with both renderings and at every precision of V's encoder",
    COLLECT: "the environment alone and collecting frames into shards, on one core",
    TRAIN_VAE: "a plain training step of V and the pipeline's",
    TRAIN_MDNRNN: "a plain training step of M and the pipeline's",
    DREAM: "one dream at a time and many in lockstep, on one core",
    STORAGE: "NumPy files and shards, in a folder and in a bucket (--s3)",
    FANOUT: "utilisation of up to 2,048 simulated workers by the scheduler, or of real ones (--workers)",
}
