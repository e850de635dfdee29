"""`python -m tfopt.distribute`: see `_launch`."""

import sys

from ._launch import main

if __name__ == "__main__":
    sys.exit(main())
