"""`python -m servematrix` is the command `servematrix`."""

import sys

from servematrix.cli import main

sys.exit(main())
