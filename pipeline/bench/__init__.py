"""What ``world-models bench`` measures."""
