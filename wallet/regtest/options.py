"""Command-line options in bitcoind's spelling: `-name=value` or `--name value`, and `bitcoin.conf`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from wallet.regtest.errors import StartupError
from wallet.regtest.notify import TOPICS
from wallet.regtest.policy import Policy
from wallet.regtest.server import Settings

DEFAULT_RPC_PORT = 18443
_OURS = {
    "datadir": ("DIR", "Where to keep the chain (default: ~/.regtestd); files lie in DIR/regtest"),
    "conf": ("FILE", "Configuration file (default: bitcoin.conf in the data directory, if there is one)"),
    "rpcport": ("PORT", f"Port of the JSON-RPC (default: {DEFAULT_RPC_PORT}; 0: a free one, printed)"),
    "rpcbind": ("ADDR", "Address to listen on (default: 127.0.0.1)"),
    "rpcuser": ("USER", "User name for JSON-RPC"),
    "rpcpassword": ("PW", "Password for JSON-RPC (default: a cookie file made at each start)"),
    "rpcauth": ("USER:SALT$HASH", "Another user; may be given several times"),
    "rpccookiefile": ("FILE", "Where to write the cookie (default: .cookie in DIR/regtest)"),
    "block-interval": ("SECONDS", "Mine a block that often (default: only when asked)"),
    "block-address": ("ADDR", "Who is paid for those blocks (default: the faucet)"),
    "minrelaytxfee": ("BTC/kvB", "Least fee rate that is relayed (default: 0.00001)"),
    "incrementalrelayfee": ("BTC/kvB", "Least additional fee rate of replacements (default: 0.00001)"),
    "dustrelayfee": ("BTC/kvB", "Fee rate that defines dust (default: 0.00003)"),
    "blockmintxfee": ("BTC/kvB", "Least fee rate that is mined (default: 0)"),
    "maxmempool": ("MB", "Size limit of the mempool (default: 300)"),
    "mempoolexpiry": ("HOURS", "Age limit in the mempool (default: 336)"),
    "limitancestorcount": ("N", "Unconfirmed ancestors, itself included (default: 25)"),
    "limitancestorsize": ("KVB", "Their size (default: 101)"),
    "limitdescendantcount": ("N", "Unconfirmed descendants, itself included (default: 25)"),
    "limitdescendantsize": ("KVB", "Their size (default: 101)"),
    "datacarriersize": ("BYTES", "Largest OP_RETURN script that is relayed (default: 83)"),
    "acceptnonstdtxn": ("0|1", "Relay non-standard transactions (default: 0)"),
    "daemon": ("0|1", "Run in the background once it is ready (default: 0); -daemonwait is the same"),
    "daemonwait": ("0|1", "Run in the background once it is ready (default: 0)"),
    **{f"zmq{topic}": ("ADDR", f"Publish {topic.removeprefix('pub')} over ZeroMQ") for topic in TOPICS},
}
_SEVERAL = {"rpcauth", "rpcbind", *(f"zmq{topic}" for topic in TOPICS)}
# Accepted and of no effect: there are no peers, everything is indexed, and scripts that start bitcoind give them.
_IGNORED = {
    "addresstype", "blockfilterindex", "blocknotify", "changetype", "checkblocks", "checklevel", "dbcache",
    "debug", "debugexclude", "debuglogfile", "deprecatedrpc", "disablewallet", "discardfee", "discover", "dns",
    "dnsseed", "fallbackfee", "fixedseeds", "keypool", "listen", "listenonion", "logips", "logsourcelocations",
    "logthreadnames", "logtimemicros", "logtimestamps", "mempoolfullrbf", "minrelayfee", "natpmp", "nodebug", "onlynet",
    "par", "peerblockfilters", "peerbloomfilters", "persistmempool", "port", "printtoconsole", "prune", "regtest",
    "rest", "rpcallowip", "rpcservertimeout", "rpcthreads", "rpcworkqueue", "server", "shrinkdebugfile", "txindex",
    "txconfirmtarget", "uacomment", "upnp", "v2transport", "wallet", "walletbroadcast", "walletdir", "walletrbf",
    "whitelist", "bind", "externalip", "maxconnections", "connect", "addnode", "chain", "coinstatsindex",
    "maxtxfee", "paytxfee", "mintxfee", "spendzeroconfchange", "proxy", "asmap", "timeout", "pid", "settings",
    "zmqpubhashblockhwm", "zmqpubhashtxhwm", "zmqpubrawblockhwm", "zmqpubrawtxhwm", "zmqpubsequencehwm",
}  # fmt: skip
_FLAGS = {"acceptnonstdtxn", "daemon", "daemonwait"}

Values = dict[str, list[str]]


def usage() -> str:
    """What `--help` prints."""
    lines = [
        "regtestd - a regtest layer 1: Bitcoin Core's consensus, a mempool, a miner, and bitcoind's JSON-RPC",
        "",
        "Usage: regtestd [options]",
        "",
        "Options are written as bitcoind's: -name=value, or --name value.",
        "",
    ]
    for name, (value, text) in _OURS.items():
        lines.append(f"  -{name}=<{value}>".ljust(34) + text)
    lines += ["  -version".ljust(34) + "Print the version", "  -help".ljust(34) + "Print this", ""]
    lines += ["Other options of bitcoind (-txindex, -fallbackfee, -listen ...) are accepted and have no effect."]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str]) -> Values:
    """Options by name without dashes. Raises StartupError for what nobody knows."""
    values: Values = {}
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            raise StartupError(f"Error parsing command line arguments: unexpected argument {word!r}; see --help")
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and word.startswith("--") and name in _OURS and name not in _FLAGS:
            if not waiting:
                raise StartupError(f"Option --{name} needs a value; see --help")
            value = waiting.pop(0)
        elif not equals:
            value = "1"
        _put(values, name, value, f"Error parsing command line arguments: Invalid parameter {word}")
    return values


def _put(values: Values, name: str, value: str, problem: str) -> None:
    known = name in _OURS or name in ("help", "h", "?", "version") or name in _IGNORED
    if not known and name.startswith("no") and (name[2:] in _OURS or name[2:] in _IGNORED):
        name, value = name[2:], "0"
    elif not known:
        raise StartupError(f"{problem}; see --help")
    if name in _SEVERAL:
        values.setdefault(name, []).append(value)
    else:
        values[name] = [value]


def read_config(path: Path) -> Values:
    """Options of a `bitcoin.conf`: those before any section and those under [regtest]. Raises StartupError."""
    values: Values = {}
    section = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1]
        elif text and section in ("", "regtest"):
            name, equals, value = (part.strip() for part in text.partition("="))
            if not equals:
                raise StartupError(f"{path}: line {number} is not NAME=VALUE: {text}")
            _put(values, name.lstrip("-"), value, f"{path}: line {number}: unknown option {name}")
    return values


class Options:
    """The options of one start: command line over configuration file over defaults. Raises StartupError."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._values = parse(arguments)
        self.help = any(name in self._values for name in ("help", "h", "?"))
        self.version = "version" in self._values
        self.datadir = Path(self._one("datadir", "~/.regtestd")).expanduser().absolute()
        config = Path(self._one("conf", "bitcoin.conf"))
        config = config if config.is_absolute() else self.datadir / config
        if config.exists():
            self._values = {**read_config(config), **self._values}
        elif "conf" in self._values:
            raise StartupError(f"The configuration file {config} does not exist")

    def _one(self, name: str, default: str) -> str:
        return self._values.get(name, [default])[-1]

    def _number(self, name: str, default: str, scale: int = 1) -> int:
        text = self._one(name, default)
        try:
            return int(Decimal(text) * scale)
        except (InvalidOperation, ValueError):
            raise StartupError(f"-{name}={text} is not a number") from None

    @property
    def background(self) -> bool:
        """Whether to run as a daemon."""
        return any(self._one(name, "0") != "0" for name in ("daemon", "daemonwait"))

    def settings(self) -> Settings:
        """What the server needs."""
        interval = self._one("block-interval", "0")
        try:
            seconds = float(interval)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise StartupError(f"-block-interval={interval} is not a number of seconds")
        cookie = self._one("rpccookiefile", "")
        host, port = self._listen()
        return Settings(
            rpc_host=host,
            rpc_port=port,
            rpc_user=self._one("rpcuser", ""),
            rpc_password=self._one("rpcpassword", ""),
            rpc_auth=tuple(self._values.get("rpcauth", ())),
            rpc_cookie_file=self.datadir / "regtest" / cookie if cookie else None,
            block_interval_seconds=seconds,
            block_address=self._one("block-address", ""),
            zmq=tuple((topic, a) for topic in TOPICS for a in self._values.get(f"zmq{topic}", ())),
            policy=self._policy(),
        )

    def _listen(self) -> tuple[str, int]:
        host, port = "127.0.0.1", self._number("rpcport", str(DEFAULT_RPC_PORT))
        bound = self._values.get("rpcbind", [])
        if bound:
            host, _, own = bound[0].partition(":")
            port = int(own) if own.isdigit() else port
        if not 0 <= port <= 65535:
            raise StartupError(f"-rpcport={port} is not a port number")
        return host, port

    def _policy(self) -> Policy:
        coin = 100_000_000
        return Policy(
            min_relay_fee=self._number("minrelaytxfee", "0.00001", coin),
            incremental_relay_fee=self._number("incrementalrelayfee", "0.00001", coin),
            dust_relay_fee=self._number("dustrelayfee", "0.00003", coin),
            block_min_fee=self._number("blockmintxfee", "0", coin),
            max_mempool_bytes=self._number("maxmempool", "300", 1_000_000),
            expiry_seconds=self._number("mempoolexpiry", "336", 3600),
            ancestor_count=self._number("limitancestorcount", "25"),
            ancestor_vbytes=self._number("limitancestorsize", "101", 1000),
            descendant_count=self._number("limitdescendantcount", "25"),
            descendant_vbytes=self._number("limitdescendantsize", "101", 1000),
            max_datacarrier_bytes=self._number("datacarriersize", "83"),
            require_standard=self._one("acceptnonstdtxn", "0") == "0",
        )
