"""`python -m woodshed`, as torchrun and friends start it."""

import sys

from woodshed.cli import main

sys.exit(main())
