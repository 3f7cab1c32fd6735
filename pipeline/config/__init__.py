"""Configuration of a run: schema, presets, and the test whether two configs describe the same run."""
