"""``python -m catapult_fast`` is the command ``catapult-fast``."""

import sys

from catapult_fast.cli import main

sys.exit(main())
