"""The seven stages, one file each. Stages never import each other: data flows through the run directory."""
