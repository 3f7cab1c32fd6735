"""The project's tests, as a package so that a config can name ``tests.counting`` as an environment."""
