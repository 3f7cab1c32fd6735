"""Rollouts: policies, recorded episodes and the lane-batched rollout loop."""
