"""Data of a run: episodes, latents, shards, their quality; names of artifacts, rounds, and the trained agent."""
