"""`regtestd`: start a regtest layer 1 and serve it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from wallet.version import VERSION

try:
    from wallet.regtest.errors import StartupError
    from wallet.regtest.options import Options, usage
    from wallet.regtest.server import RegtestServer
except ModuleNotFoundError as error:
    if error.name not in ("pbk", "pbk.capi"):
        raise
    sys.exit("regtestd needs the Python package py-bitcoinkernel: pip install 'channeld[regtest]'")


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit status."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
        if options.help:
            sys.stdout.write(usage())
            return 0
        if options.version:
            sys.stdout.write(f"regtestd {VERSION}\n")
            return 0
        options.settings()
        if options.background:
            return _in_background(options)
        return asyncio.run(_run(options))
    except StartupError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _in_background(options: Options) -> int:
    """Start in a child process that outlives this one; returns when the child is ready or has failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        status = 1
        try:
            status = asyncio.run(_run(options, ready=writing))
        except StartupError as error:
            os.write(writing, f"Error: {error}\n".encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    failed = not said or said.startswith("Error: ")
    (sys.stderr if failed else sys.stdout).write(said or "Error: regtestd ended before it was ready\n")
    return int(failed)


def _detach() -> None:
    # Whoever reads our output would wait for its end.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


async def _run(options: Options, ready: int | None = None) -> int:
    server = RegtestServer(options.datadir, options.settings())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop_requested.set)
    await server.start()
    try:
        height = server.node.chain.height
        access = server.cookie_file if not server.settings.rpc_password else f"user {server.auth[0]}"
        line = f"regtestd is ready: {server.url}, {access}, height {height}\n"
        if ready is None:
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            os.write(ready, line.encode())
            os.close(ready)
            _detach()
        await server.stop_requested.wait()
    finally:
        await server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
