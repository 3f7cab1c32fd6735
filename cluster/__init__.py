"""Everything about where a cluster comes from and how a run is submitted to it. Needs no torch."""
