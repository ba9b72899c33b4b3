"""``python -m eval COMMAND``: the console script."""

import sys

from eval.cli import main

sys.exit(main())
