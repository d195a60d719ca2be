"""`python -m anole_cli` is `anole`."""

import sys

from anole_cli.main import main

sys.exit(main())
