"""A simulated cluster in virtual time, for the scheduler: its tests, its bench, and plans."""
