"""CMA-ES: ask and tell, fitness, and the checkpointed state."""
