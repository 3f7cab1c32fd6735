"""Gradient training: shuffled streaming from shards, and the loop that V and M share."""
