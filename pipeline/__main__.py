"""``python -m pipeline`` is the ``world-models`` command."""

from pipeline.cli.main import entry

if __name__ == "__main__":
    entry()
