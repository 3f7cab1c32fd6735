"""Executors: their protocol, the scheduler of a pool with its workers and jobs, and the executor in this process."""
