"""Where work runs: one protocol, the jobs of a map, and this process."""
