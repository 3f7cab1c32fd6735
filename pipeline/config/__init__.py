"""What a run is made from: the schema of its config, presets, and what makes two configs the same run."""
