"""Watchtowers of this node: what they need to punish every revoked commitment, made of what the database keeps anyway.

Nothing is written for towers when a commitment is revoked: how many of the peer's secrets there are is in the channel's
state, and what the commitments paid is in `revocable`, both committed with the messages that made them so. The queue of
backups is the difference between that and what each tower has confirmed, and no payment waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import structlog
from sqlalchemy import Connection, select

from channeld.bolt.transactions import CommitmentSpec, Htlc, build_commitment
from channeld.bolt.transactions.scripts import to_remote_script
from channeld.channel.state import Closed, Funded
from channeld.channel.writes import SaveRevocable
from channeld.node.bus import EventBus
from channeld.node.channels import Channels, Driver
from channeld.node.identity import Identity
from channeld.storage import Store, rows, tables
from wallet.bitcoin.secp import pubkey_of
from wallet.bitcoin.tx import SEQUENCE_RBF
from wallet.wallet import Wallet
from watchtower.appointment import JusticeKit
from watchtower.client.towers import Towers
from watchtower.client.values import KitMaker
from watchtower.justice import Penalty

log = structlog.get_logger(__name__)
_SCRIPT_KEY = "tower_script/"
MAX_SCRIPTS = 16
"""As a rule they are never paid to, and who restores a wallet from its words sees 100 such scripts in a row at most:
all channels share so many. Nobody sees them but in a breach."""
_revocable = msgspec.msgpack.Decoder(SaveRevocable)


def channel_name(channel_key: int) -> bytes:
    """What a channel is called towards `watchtower.client`: 32 bytes. Towers never see it."""
    return channel_key.to_bytes(32, "big")


class ChannelBackups:
    """Implements `watchtower.client.values.Backups`."""

    def __init__(self, store: Store, channels: Channels, wallet: Wallet) -> None:
        self._store = store
        self._channels = channels
        self._wallet = wallet
        self._counts: dict[bytes, int] = {}
        self._scripts: dict[int, bytes] = {}

    def load(self, connection: Connection) -> None:
        """The channels are loaded."""
        for key, value in rows.load_meta(connection).items():
            if key.startswith(_SCRIPT_KEY):
                self._scripts[int(key.removeprefix(_SCRIPT_KEY))] = value
        for driver in self._channels.all():
            self.look(driver)

    def look(self, driver: Driver) -> bool:
        """Whether more is revoked than before."""
        if not isinstance(driver.state, Funded):
            return False
        name, count = channel_name(driver.channel_key), driver.state.commitments.remote_secrets.count
        if count == self._counts.get(name, 0):
            return False
        self._counts[name] = count
        return True

    def forget(self, driver: Driver) -> bool:
        """The channel is over; whether it had something revoked."""
        return self._counts.pop(channel_name(driver.channel_key), None) is not None

    def counts(self) -> Mapping[bytes, int]:
        """See Backups."""
        return dict(self._counts)

    async def kits(self, channel: bytes, first: int, count: int) -> KitMaker | None:
        """See Backups."""
        channel_key = int.from_bytes(channel, "big")
        driver = self._channels.by_key(channel_key)
        if driver is None or channel not in self._counts:
            return None
        script = await self._script(channel_key)
        kept = await self._store.read(lambda connection: load_revocables(connection, channel_key, first, count))
        numbers = range(first, min(first + count, self._counts[channel]))
        return partial(_kits, driver, [kept.get(number) for number in numbers], script)

    def script_of(self, channel_key: int) -> bytes:
        """Where towers pay for a channel; empty as long as none was told of it."""
        return self._scripts.get(channel_key, b"")

    async def _script(self, channel_key: int) -> bytes:
        """Where justice for a channel pays: the same script for good, so that a blob can be made again."""
        script = self._scripts.get(channel_key)
        if script is None:
            known = sorted(set(self._scripts.values()))
            fresh = known[channel_key % len(known)] if len(known) >= MAX_SCRIPTS else await self._wallet.new_script()
            script = self._scripts.setdefault(channel_key, fresh)  # two towers may ask at once
            await self._store.commit([rows.SET_META(f"{_SCRIPT_KEY}{channel_key}", script)])
        return script


def load_revocables(connection: Connection, channel_key: int, first: int, count: int) -> dict[int, SaveRevocable]:
    """What was kept of the peer's commitments, by number."""
    table = tables.revocable.c
    query = select(table.commitment_index, table.details).where(
        table.channel_key == channel_key,
        table.commitment_index >= first,
        table.commitment_index < first + count,
    )
    return {row.commitment_index: _revocable.decode(row.details) for row in connection.execute(query)}


def _kits(driver: Driver, kept: Sequence[SaveRevocable | None], script: bytes) -> list[JusticeKit | None]:
    return [None if revocable is None else make_kit(driver, revocable, script) for revocable in kept]


def make_kit(driver: Driver, revocable: SaveRevocable, sweep_script: bytes) -> JusticeKit | None:
    """All that it takes to punish one revoked commitment; None if nothing in it can be taken.

    The commitment is built again from what was kept of it; its txid shows that this is right.
    """
    assert isinstance(driver.state, Funded)
    params, secrets = driver.state.params.commitment, driver.secrets
    secret = driver.state.commitments.remote_secrets.secret(revocable.index)
    htlcs = frozenset(
        Htlc(number, amount_msat, payment_hash, cltv_expiry, offered)
        for number, (offered, amount_msat, payment_hash, cltv_expiry) in enumerate(revocable.htlcs)
    )
    spec = CommitmentSpec(htlcs, revocable.feerate_per_kw, revocable.to_local_msat, revocable.to_remote_msat)
    built = build_commitment(params, spec, "remote", revocable.index, pubkey_of(secret))
    if built.txid != revocable.txid:
        # A splice or a replaced funding transaction: another commitment of the same number was signed.
        log.error("a revoked commitment cannot be built again", channel=driver.channel_id.hex(), number=revocable.index)
        return None
    outputs = built.tx.outputs
    penalties = []
    if built.to_local_index is not None:
        amount_sat = outputs[built.to_local_index].value_sat
        penalties.append(Penalty("to_local", built.to_local_index, amount_sat, built.to_local_script, (b"\x01",)))
    if built.to_remote_index is not None:
        basepoint = params.local.payment_basepoint
        way = (to_remote_script(basepoint), (), 1) if params.anchors else (b"", (basepoint,), SEQUENCE_RBF)
        amount_sat = outputs[built.to_remote_index].value_sat
        penalties.append(Penalty("to_remote", built.to_remote_index, amount_sat, *way))
    for htlc in built.htlcs:
        tail = (built.keys.revocation_pubkey,)
        penalties.append(Penalty("htlc", htlc.output_index, htlc.amount_sat, htlc.witness_script, tail))
    if not penalties:
        return None
    return JusticeKit(
        built.txid,
        tuple(penalties),
        secrets.revocation_secret(secret),
        secrets.payment_basepoint_secret if built.to_remote_index is not None else b"",
        built.to_local_script,
        params.remote_to_self_delay,
        sweep_script,
    )


class NodeTowers:
    """The node's towers: opened after the channels are loaded, started and stopped with the node."""

    def __init__(self, store: Store, identity: Identity, channels: Channels, wallet: Wallet, bus: EventBus) -> None:
        self._store = store
        self._channels = channels
        self._wallet = wallet
        self._bus = bus
        self._master = identity.secret("towers")
        self.backups = ChannelBackups(store, channels, wallet)
        self._tasks: set[asyncio.Task[None]] = set()
        self.all: Towers

    async def open(self) -> None:
        """Read what is known."""
        await self._store.read(self.backups.load)
        self.all = await Towers.open(self._store, self.backups, self._master)
        self.all.on_news = self._bus.publish

    @property
    def height(self) -> int:
        """Of the last block that the node has processed."""
        return self._wallet.height

    def channel_id(self, name: bytes) -> bytes:
        """From `channel_name`; empty if the channel is gone."""
        driver = self._channels.by_key(int.from_bytes(name, "big"))
        return driver.channel_id if driver is not None else b""

    def start(self) -> None:
        """Begin to bring towers up to date."""
        self.all.start()

    def touched(self, driver: Driver) -> None:
        """A batch of a channel is durable."""
        if self.backups.look(driver):
            self.all.notify()
        elif isinstance(driver.state, Closed) and self.backups.forget(driver):
            task = asyncio.create_task(self.all.forget_channel(channel_name(driver.channel_key)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop; what is missing is sent after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.all.close()
