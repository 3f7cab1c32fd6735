"""``python -m pipeline`` is the ``world-models`` command."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
