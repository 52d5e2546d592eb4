"""`regtestd`: start a regtest layer 1 and serve it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from importlib.metadata import version

from wallet.regtest.errors import StartupError
from wallet.regtest.options import Options, usage
from wallet.regtest.server import RegtestServer


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit status."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
        if options.help:
            sys.stdout.write(usage())
            return 0
        if options.version:
            sys.stdout.write(f"regtestd {version('channeld')}\n")
            return 0
        return asyncio.run(_run(options))
    except StartupError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


async def _run(options: Options) -> int:
    server = RegtestServer(options.datadir, options.settings())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop_requested.set)
    await server.start()
    try:
        height = server.node.chain.height
        access = server.cookie_file if not server.settings.rpc_password else f"user {server.auth[0]}"
        sys.stdout.write(f"regtestd is ready: {server.url}, {access}, height {height}\n")
        sys.stdout.flush()
        await server.stop_requested.wait()
    finally:
        await server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
