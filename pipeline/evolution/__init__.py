"""CMA-ES: ask and tell, fitness, and the state that a checkpoint carries."""
