"""`regtest-cli METHOD [PARAMETER ...]`: calls regtestd as `bitcoin-cli` calls bitcoind, and prints what it answers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from wallet.chain import ChainUnavailable
from wallet.regtest.options import DEFAULT_RPC_PORT
from wallet.rpc import RpcClient, RpcConfig, RpcError
from wallet.version import VERSION

USAGE = """regtest-cli - asks a running regtestd

Usage: regtest-cli [options] METHOD [PARAMETER ...]

  -datadir=<DIR>       regtestd's data directory (default: ~/.regtestd)
  -rpcport=<PORT>      its port (default: what it wrote into its data directory, else 18443)
  -rpcuser=<USER>      user name, if it was started with one
  -rpcpassword=<PW>    and its password (default: the cookie file)
  -version             print the version

Parameters are JSON where they are JSON (true, 7, ["a"]), else text. Examples:

  regtest-cli generatetoaddress 6 $(regtest-cli getnewaddress)
  regtest-cli sendtoaddress bcrt1q... 0.5
  regtest-cli help
"""
_OPTIONS = ("datadir", "rpcport", "rpcuser", "rpcpassword")


class UsageError(Exception):
    """The command line is wrong; the text is a sentence."""


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str, list[Any]]:
    """(options, method, parameters). Raises UsageError."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if name not in _OPTIONS:
            raise UsageError(f"there is no option -{name}; see regtest-cli -help")
        if not equals and not rest:
            raise UsageError(f"-{name} needs a value")
        options[name] = value if equals else rest.pop(0)
    if not rest:
        raise UsageError("say which method to call; `regtest-cli help` lists them")
    return options, rest[0], [_parameter(text) for text in rest[1:]]


def _parameter(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # A number with more digits than JSON keeps is a hash or an address that happens to be all digits.
    return text if isinstance(value, int) and not isinstance(value, bool) and len(text) > 15 else value


def config(options: dict[str, str]) -> RpcConfig:
    """Where to call, and as whom."""
    directory = Path(options.get("datadir", "~/.regtestd")).expanduser() / "regtest"
    port_file = directory / "rpcport"
    port = options.get("rpcport") or (port_file.read_text().strip() if port_file.exists() else str(DEFAULT_RPC_PORT))
    url = f"http://127.0.0.1:{port}"
    if "rpcuser" in options:
        return RpcConfig(url, options["rpcuser"], options.get("rpcpassword", ""))
    return RpcConfig(url, cookie_file=directory / ".cookie")


async def _call(config: RpcConfig, method: str, parameters: Sequence[Any]) -> Any:
    client = RpcClient(config)
    try:
        return await client.call(method, *parameters)
    finally:
        await client.close()


def show(result: Any) -> str:
    """As bitcoin-cli prints: text as it is, the rest as JSON, nothing for null."""
    if result is None:
        return ""
    if isinstance(result, str):
        return result
    return msgspec.json.format(msgspec.json.Encoder(decimal_format="number").encode(result), indent=2).decode()


def main() -> int:
    """The exit status: 0, or the error's code as bitcoin-cli gives it."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-version"], ["--version"]):
        print(f"regtest-cli {VERSION}")
        return 0
    if not arguments or arguments[0] in ("-help", "--help", "-h", "-?"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        options, method, parameters = parse(arguments)
        result = asyncio.run(_call(config(options), method, parameters))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RpcError as error:
        print(f"error code: {error.code}\nerror message:\n{error.message}", file=sys.stderr)
        return abs(error.code) & 0xFF
    except ChainUnavailable as error:
        print(f"error: {error}\nIs regtestd running, with this -datadir?", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if text := show(result):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
