"""Environments, real and dreamt, behind one protocol."""
