"""Run the command: `python -m xlingtox`."""

import sys

from xlingtox.cli import main

if __name__ == "__main__":
    sys.exit(main())
