"""`channeld`: start a Lightning node and run it until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from watchtower.rpc.lean import import_structlog

if TYPE_CHECKING:
    from channeld.config import Config
    from channeld.storage import CommitHook


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, or 1 with a sentence on stderr (2 for wrong flags)."""
    gc.disable()  # until everything is imported: collecting meanwhile would cost a sixth of the start
    import_structlog()
    from channeld.config import load_config
    from watchtower.rpc.settings import ConfigError

    try:
        config = load_config(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        return _fail(error)
    return run_daemon(config)


def run_daemon(config: Config, commit_hook: CommitHook | None = None) -> int:
    """Everything after the settings; heavy imports wait until here: `--help` is quick. `commit_hook` is for tests."""
    from channeld.api.server import ApiError
    from channeld.backup import BackupError
    from channeld.daemon import StartError, back_up, restore, run, show_seed
    from channeld.storage import StorageError
    from wallet.chain import ChainError
    from wallet.errors import WalletError
    from wallet.keys import SeedError
    from wallet.seedfile import SeedFileError
    from watchtower.rpc import logs
    from watchtower.rpc.files import keep_private
    from watchtower.rpc.listen import ListenError
    from watchtower.rpc.lock import LockError, locked
    from watchtower.rpc.settings import ConfigError

    collect_garbage_rarely()
    keep_private()
    try:
        if config.show_seed:
            show_seed(config)
            return 0
        if config.back_up_to is not None:
            back_up(config, config.back_up_to)
            return 0
        with locked(config.paths.lock, "channeld"):
            if config.restore_from is not None:
                restore(config, config.restore_from)
                return 0
            logs.set_up(config.paths.log, config.log_level)
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(run(config, commit_hook))
    except (
        ConfigError,
        ListenError,
        LockError,
        StartError,
        ApiError,
        BackupError,
        StorageError,
        ChainError,
        WalletError,
        SeedError,
        SeedFileError,
    ) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def collect_garbage_rarely() -> None:
    """Hardly anything here is garbage in circles: looking for it often only costs time."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _fail(error: Exception) -> int:
    sys.stderr.write(f"channeld: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
