"""Measurements of ``world-models bench``."""
