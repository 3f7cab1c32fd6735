"""Experiment trackers: MLflow, Weights & Biases and trackio show a run's metrics, config, scores and report."""
