"""Environments behind one protocol, and their registry."""
