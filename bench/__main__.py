"""`python -m bench`, which is what `make bench` runs; `anole bench` is the same."""

import argparse
import sys

from anole_shared.errors import AnoleError
from bench.command import run
from bench.options import DESCRIPTION, add_flags


def main() -> int:
    """Parse, run; errors of ours as one readable line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    try:
        return run(parser.parse_args())
    except AnoleError as fault:
        print(f"bench: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
