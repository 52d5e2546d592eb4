"""The demo with processes that start warm: `python -m tests.warm_demo`. At its end it tells how many still run."""

from __future__ import annotations

import sys

from channeld.lab import demo
from tests.warm import warm_starts


def main() -> int:
    """The demo's exit status."""
    with warm_starts() as warm:
        status = demo.main()
        print(f"{len(warm.running())} processes still run.")
    return status


if __name__ == "__main__":
    sys.exit(main())
