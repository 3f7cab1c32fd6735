"""The ``world-models`` command."""
