"""Sharing of agents and results: small folders with a card, their upload, and results without their data."""
