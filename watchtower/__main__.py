"""`watchtowerd`: start a watchtower and run it until it is told to stop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from watchtower.rpc.lean import import_structlog

if TYPE_CHECKING:
    from watchtower.tower.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, or 1 with a sentence on stderr (2 for wrong flags)."""
    import_structlog()
    from watchtower.rpc.settings import ConfigError
    from watchtower.tower.config import load_config

    try:
        config = load_config(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        return _fail(error)
    return _run(config)


def _run(config: Config) -> int:
    """Everything after the settings; heavy imports wait until here, so that `--help` is quick."""
    import uvloop

    from wallet.chain import ChainError
    from wallet.db import StorageError
    from watchtower.rpc import logs
    from watchtower.rpc.files import keep_private
    from watchtower.rpc.listen import ListenError
    from watchtower.rpc.lock import LockError, locked
    from watchtower.rpc.settings import ConfigError
    from watchtower.tower.daemon import TowerError, run
    from watchtower.tower.server import ServerError

    keep_private()
    try:
        with locked(config.paths.lock, "watchtowerd"):
            logs.set_up(config.paths.log, config.log_level)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run(config))
    except (ConfigError, ListenError, LockError, TowerError, ServerError, StorageError, ChainError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: Exception) -> int:
    sys.stderr.write(f"watchtowerd: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
