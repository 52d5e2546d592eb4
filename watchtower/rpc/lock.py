"""One daemon a data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class LockError(Exception):
    """The data directory cannot be used; the text is a sentence for the operator."""


@contextlib.contextmanager
def locked(path: Path, program: str) -> Iterator[None]:
    """Hold the data directory by the file at `path`. Raises LockError if another daemon does."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise LockError(f"the data directory {path.parent} cannot be used: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            who = f"another {program} (process {owner})" if owner else f"another {program}"
            raise LockError(
                f"the data directory {path.parent} is in use by {who}: stop that one, or choose another --datadir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
