"""Comparison of runs: arms, their seeds, and the same test tracks for all."""
