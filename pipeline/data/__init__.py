"""What is learned from: episodes, latents, and the shards that hold them."""
