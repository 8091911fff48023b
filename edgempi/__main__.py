"""`python -m edgempi` is the same door as the `edgempi` command."""

import sys

from edgempi.cli import main

if __name__ == "__main__":
    sys.exit(main())
