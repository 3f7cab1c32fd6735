"""Executors: their protocol, the job queue of a map, and the executor in this process."""
