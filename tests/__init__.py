"""The project's tests; a package, so that ``tests.counting`` can be named as an environment."""
