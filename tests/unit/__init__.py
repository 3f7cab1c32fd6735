"""Tests that need neither Ray nor a network."""
