"""Training data: episodes, latents, and the shards that hold them."""
