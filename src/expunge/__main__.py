"""``python -m expunge``: the command line."""

import sys

from expunge.cli.main import main

sys.exit(main())
