"""Driving: policies, episodes and the lane-batched rollout loop."""
