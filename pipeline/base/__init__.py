"""Small tools that know nothing of world models: errors, progress, seeds, threads, text."""
