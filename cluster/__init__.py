"""Clusters: their configuration files, job submission and spot notices. Needs no torch."""
