"""The run directory: stores, records and manifests, shards, checkpoints."""
