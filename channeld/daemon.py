"""A daemon's life: seed, database, layer 1, node, API; until a signal, `stop`, or something it cannot survive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from channeld import backup
from channeld.api.server import ApiServer
from channeld.channel.env import ChannelPolicy
from channeld.config import Config
from channeld.node.gossip import GossipSettings
from channeld.node.node import Node
from channeld.node.runtime import NodeSettings, Runtime
from channeld.node.transport import in_words
from channeld.paths import write_private
from channeld.storage import CommitHook, Store, make_engine, upgrade
from channeld.storage.rows import load_meta
from wallet.bitcoin.address import BY_NAME
from wallet.keys import Keys, Seed
from wallet.seedfile import is_encrypted, read_seed, write_seed

if TYPE_CHECKING:
    from watchtower.rpc.metrics import MetricsServer

log = structlog.get_logger(__name__)
SAY_WAITING_SECONDS = 1.0


class StartError(Exception):
    """The daemon cannot start; the text is a sentence for the operator."""


def load_or_make_seed(config: Config) -> tuple[Seed, int | None]:
    """The seed and, if its age is not known to be zero, the height to look for its coins from.

    Raises StartError, SeedError, SeedFileError, BackupError.
    """
    path, password = config.paths.seed, config.seed_password or None
    if path.exists():
        if config.seed_words:
            raise StartError(f"there is a seed at {path} already: leave seed_words out, or choose another --datadir")
        seed = _read_seed(config)
        if backup.is_missing(config):
            backup.check_not_lost(config, seed)
        return seed, None
    if config.paths.database.exists():
        raise StartError(
            f"there is a database in {path.parent}, but its seed file {path} is missing: put the file back, or move "
            "the database (with its -wal and -shm) away, and give it with --restore-from and the words with "
            "CHANNELD_SEED_WORDS"
        )
    if config.seed_words:
        seed = Seed.restore(config.seed_words, config.seed_passphrase)
        if backup.is_missing(config):  # first: at the next start the words are not given, nor the height to look from
            backup.check_not_lost(config, seed)
        write_seed(path, seed, password)
        return seed, config.birthday_height or 0
    backup.check_no_other(config)
    seed = Seed.create(os.urandom(32), config.seed_passphrase)
    write_seed(path, seed, password)
    if sys.stdout.isatty():
        _say(f"\nThis is the seed of your new node. Write the words down, in order.\n\n{in_rows(seed)}\n")
    else:  # what is written here may be kept in a log for ever
        command = f"channeld --network {config.network} --datadir {config.paths.root} --show-seed"
        _say(f"A seed was made for your new node. Write its words down: `{command}` shows them.")
    return seed, None


def _read_seed(config: Config) -> Seed:
    """Raises StartError, SeedFileError."""
    path, password = config.paths.seed, config.seed_password
    if is_encrypted(path) and not password:
        raise StartError(f"the seed at {path} is encrypted: give its password with CHANNELD_SEED_PASSWORD")
    if password and not is_encrypted(path):
        log.warning("a seed password is given, but the seed file is not encrypted", path=str(path))
    return read_seed(path, password or None)


def show_seed(config: Config) -> None:
    """Print the words that are in the data directory. Raises StartError, SeedFileError."""
    if not config.paths.seed.exists():
        raise StartError(f"there is no seed at {config.paths.seed}: the first start of channeld makes one")
    seed = _read_seed(config)
    _say(in_rows(seed))
    if seed.passphrase:
        _say(f"Passphrase (part of the seed): {seed.passphrase}")


def back_up(config: Config, target: Path) -> None:
    """`--back-up-to`. Raises BackupError."""
    copied = backup.back_up(config, target.expanduser())
    _say(f"Copied the database of {copied.node_id.hex()} with {_channels(copied.channels)} to {target}.")


def restore(config: Config, source: Path) -> None:
    """`--restore-from`; the data directory is locked. Raises BackupError, StartError, SeedError, SeedFileError."""
    path = config.paths.seed
    if path.exists():
        seed = _read_seed(config)
        if config.seed_words and Seed.restore(config.seed_words, config.seed_passphrase) != seed:
            raise StartError(f"the seed at {path} is another one than the words: move it away, but keep it")
    elif config.seed_words:
        seed = Seed.restore(config.seed_words, config.seed_passphrase)
    else:
        raise StartError(f"there is no seed at {path}: put the file back, or give the words with CHANNELD_SEED_WORDS")
    copied = backup.restore(config, source.expanduser(), seed)
    if not path.exists():
        write_seed(path, seed, config.seed_password or None)
    _say(
        f"Made the database of {copied.node_id.hex()} with {_channels(copied.channels)} from {source}. Start "
        "channeld as ever, but without CHANNELD_SEED_WORDS: it waits for each peer before it publishes anything, and "
        "peers close the channels whose state is outdated."
    )


def _channels(number: int) -> str:
    return f"{number:,} open channel{'' if number == 1 else 's'}"


def in_rows(seed: Seed) -> str:
    """The words with their numbers, four a line, and what they are good for."""
    rows = []
    for start in range(0, len(seed.words), 4):
        numbered = enumerate(seed.words[start : start + 4], start + 1)
        rows.append("  ".join(f"{place:4}. {word:<8}" for place, word in numbered).rstrip())
    good_for = "They bring back the coins on chain and the node's identity; with channels.backup, what is in channels."
    return "\n".join([*rows, "", good_for])


class Daemon:
    """A node with its API, as one process runs it. `commit_hook` is for tests."""

    def __init__(self, config: Config, commit_hook: CommitHook | None = None) -> None:
        self.config = config
        self.runtime: Runtime | None = None
        self.api: ApiServer | None = None
        self.metrics: MetricsServer | None = None
        self._lag: asyncio.Task[None] | None = None
        self._commit_hook = commit_hook

    async def start(self) -> None:
        """Open everything and listen. Raises StartError and the parts' own errors, whose texts are sentences."""
        config, paths = self.config, self.config.paths
        seed, birthday_height = load_or_make_seed(config)
        keys = Keys.from_seed(seed, BY_NAME[config.network])
        engine = make_engine(config.database or f"sqlite:///{paths.database}")
        upgrade(engine)
        with engine.connect() as connection:
            is_empty = not load_meta(connection)
        if is_empty:
            first_height = backup.check_not_lost(config, seed)
            birthday_height = first_height if birthday_height is None else birthday_height
        store = Store(engine, self._database_failed, self._commit_hook)
        source = config.chain_source(self._waiting)
        try:
            self.runtime = await Runtime.create(store, keys, source, self._settings(birthday_height))
        except BaseException:
            await source.close()
            await store.close()
            raise
        try:
            await self.runtime.start()
        except OSError as error:
            raise StartError(f"cannot listen for peers on {config.listen}: {in_words(error)}") from error
        node = Node(self.runtime)
        await self._start_metrics(node, store)
        self.api = ApiServer(node, paths, *config.rpc_address, hosts=config.rpc_hosts, towers=self.runtime.towers)
        await self.api.start()

    async def _start_metrics(self, node: Node, store: Store) -> None:
        """Raises ListenError, ConfigError."""
        address = self.config.metrics_address
        if address is None:
            return
        from channeld.node.metrics import LoopLag, NodeCollector, make_registry
        from watchtower.rpc.metrics import MetricsServer

        lag = LoopLag()
        collector = NodeCollector(node, store, lag)
        chain = node.runtime.chain
        self.metrics = MetricsServer(address, make_registry(node, collector), lambda: chain.synced, collector.refresh)
        await self.metrics.start()
        self._lag = asyncio.create_task(lag.run(), name="loop lag")

    def _settings(self, birthday_height: int | None) -> NodeSettings:
        config = self.config
        policy = ChannelPolicy(
            minimum_depth_blocks=config.min_depth,
            min_funding_sat=config.min_channel_sat,
            max_funding_sat=config.max_channel_sat,
            max_feerate_per_kw=config.max_feerate_per_kw,
            accept_zero_conf_from=config.trusted_peers,
        )
        if config.network == "regtest":  # blocks come when they are asked for: no time passes with them
            policy = replace(policy, unconfirmed_deadline_seconds=0)
        if config.paths.restored.exists():
            log.warning("the database was made from a copy", mark=str(config.paths.restored))
            policy = replace(policy, database_is_copy=True)
        gossip = GossipSettings(config.paths.gossip, config.announced_addresses)
        return NodeSettings(
            config.alias,
            config.color,
            config.listen_addresses,
            policy,
            birthday_height,
            gossip,
            config.accept_keysend,
            config.gap_limit,
            config.channel_backups,
        )

    def _database_failed(self, error: BaseException) -> None:
        log.critical("the database failed", exc_info=error)
        if self.runtime is not None:
            self.runtime.fail(f"the database could not be written: {error}")

    def _waiting(self, reason: str) -> None:
        if self.runtime is not None:
            self.runtime.chain.waiting(reason)

    async def serve(self) -> None:
        """Say when the node is ready, and return when it has to stop."""
        runtime, api = self.runtime, self.api
        assert runtime is not None
        assert api is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, runtime.stopped.set)
        synced = asyncio.ensure_future(runtime.wait_synced())
        stopped = asyncio.ensure_future(runtime.stopped.wait())
        try:
            await asyncio.wait((synced, stopped), timeout=SAY_WAITING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not synced.done() and not stopped.done():
                _say(f"channeld waits for layer 1 ({runtime.chain.status}); gRPC on {api.address}")
                await asyncio.wait((synced, stopped), return_when=asyncio.FIRST_COMPLETED)
            if synced.done():
                self._say_ready(runtime, api)
            await stopped
        finally:
            synced.cancel()
            stopped.cancel()

    def _say_ready(self, runtime: Runtime, api: ApiServer) -> None:
        ready = {
            "node_id": runtime.identity.node_id.hex(),
            "listen": runtime.listening,
            "grpc": api.address,
            "metrics": self.metrics.url if self.metrics is not None else "",
            "pid": os.getpid(),
        }
        write_private(self.config.paths.ready, json.dumps(ready).encode() + b"\n")
        peers = ", ".join(runtime.listening) or "no address"
        _say(f"channeld is ready: {ready['node_id']}, peers on {peers}, gRPC on {api.address}")

    async def stop(self) -> None:
        """Stop what was started."""
        self.config.paths.ready.unlink(missing_ok=True)
        if self.api is not None:
            await self.api.stop()
        if self._lag is not None:
            self._lag.cancel()
        if self.metrics is not None:
            await self.metrics.stop()
        if self.runtime is not None:
            await self.runtime.close()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def run(config: Config, commit_hook: CommitHook | None = None) -> None:
    """Run until told to stop. Raises StartError and the parts' own errors, whose texts are sentences."""
    daemon = Daemon(config, commit_hook)
    try:
        await daemon.start()
        await daemon.serve()
    finally:
        await daemon.stop()
    if daemon.runtime is not None and daemon.runtime.failure is not None:
        raise StartError(daemon.runtime.failure)
