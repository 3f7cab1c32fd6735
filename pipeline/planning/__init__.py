"""Estimates made before a run starts: time, money and memory."""
