"""The run directory: stores, layout, records and manifests, checkpoints, sessions, lease, references, metrics."""
