"""Presets, as YAML. Data only."""
