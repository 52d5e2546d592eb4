"""Files that only their owner may read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from wallet.files import sync_directory


def keep_private() -> None:
    """What this process creates from now on is for its owner alone, also in a directory that others may read."""
    os.umask(0o077)


def write_private(path: Path, content: bytes, may_replace: Callable[[], bool] = lambda: True) -> bool:
    """Writes a file that only its owner may read, durably and all at once: never half of it, never readable between.

    `may_replace` is asked right before that; whether it was done. If another disk is mounted there after it was asked,
    OSError is raised, and nothing was done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    if not may_replace():
        temporary.unlink()
        return False
    temporary.replace(path)
    sync_directory(path.parent)
    return True
