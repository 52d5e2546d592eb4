"""What makes a daemon's start quicker."""

from __future__ import annotations

import sys


def import_structlog() -> None:
    """Imports structlog without rich and pygments, a tenth of all that a daemon has to import: structlog takes them if
    they are there, for tracebacks in colours, which no log of ours has. Does nothing if one of the two is loaded."""
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    try:
        import structlog  # noqa: F401  # for what it leaves in `sys.modules`
    finally:
        del sys.modules["rich"]
