"""A page on which people watch an agent, take the wheel, and drive in its dream."""
