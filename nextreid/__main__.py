"""``python -m nextreid``, as ``torchrun -m nextreid train`` needs it."""

import sys

from nextreid.cli import main

if __name__ == "__main__":
    sys.exit(main())
