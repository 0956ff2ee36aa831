"""`python -m gpureg` is the command `gpureg`."""

import sys

from gpureg.cli import main

sys.exit(main())
