"""General utilities that are independent of world models: errors, progress, seeds, threads, text."""
