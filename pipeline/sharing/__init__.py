"""Agents in people's hands: small folders to share, with a card."""
