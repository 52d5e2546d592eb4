"""Small networks to gossip about: keys from numbers, signed announcements, a layer 1 that knows their outputs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from channeld.bolt.features import Feature, optional
from channeld.bolt.messages import ChannelAnnouncement, ChannelUpdate, Message, NodeAnnouncement, SignedGossip, decode
from channeld.bolt.transactions.funding import funding_script_pubkey
from channeld.gossip.interface import Funding, FundingUnknown, GraphSink, Refusal
from channeld.gossip.store import GossipStore
from channeld.gossip.view import NetworkView
from wallet.bitcoin import secp

CHAIN_HASH = bytes.fromhex("06226e46111a0b59caaf126043eb5bbf28c34f3a5e332a1fc7b2b73cf188910f")
NOW = 1_700_000_000
CAPACITY_SAT = 1_000_000
GOSSIP_FEATURES = (Feature.gossip_queries, Feature.gossip_queries_ex)


@cache
def secret_of(number: int, purpose: str = "node") -> bytes:
    return hashlib.sha256(f"{purpose} {number}".encode()).digest()


@cache
def node_id_of(number: int) -> bytes:
    return secp.pubkey_of(secret_of(number))


def scid_of(block: int, index: int = 1, output: int = 0) -> int:
    return block << 40 | index << 16 | output


def in_order(first: int, second: int) -> tuple[int, int]:
    """Node numbers, the one with the lesser id first."""
    return (first, second) if node_id_of(first) < node_id_of(second) else (second, first)


def funding_secrets(scid: int) -> tuple[bytes, bytes]:
    return secret_of(scid, "funding 1"), secret_of(scid, "funding 2")


def make_announcement(
    scid: int, first: int, second: int, features: bytes = b"", chain_hash: bytes = CHAIN_HASH, excess: bytes = b""
) -> ChannelAnnouncement:
    """Signed by all four keys."""
    nodes = in_order(first, second)
    secrets = (*(secret_of(node) for node in nodes), *funding_secrets(scid))
    keys = [secp.pubkey_of(secret) for secret in secrets]
    fields = (features, chain_hash, scid, keys[0], keys[1], keys[2], keys[3])
    none = bytes(64)
    digest = ChannelAnnouncement(none, none, none, none, *fields, excess_data=excess).signature_hash
    signed = [secp.sign(secret, digest) for secret in secrets]
    return ChannelAnnouncement(signed[0], signed[1], signed[2], signed[3], *fields, excess_data=excess)


def make_update(
    scid: int,
    signer: int,
    other: int,
    timestamp: int = NOW,
    *,
    disabled: bool = False,
    message_flags: int = 1,
    cltv: int = 40,
    minimum: int = 1,
    base: int = 1000,
    ppm: int = 100,
    maximum: int = 990_000_000,
    chain_hash: bytes = CHAIN_HASH,
    excess: bytes = b"",
) -> ChannelUpdate:
    """By node `signer` of a channel with node `other`."""
    flags = int(in_order(signer, other)[0] != signer) | (2 if disabled else 0)
    fields = (chain_hash, scid, timestamp, message_flags, flags, cltv, minimum, base, ppm, maximum)
    digest = ChannelUpdate(bytes(64), *fields, excess_data=excess).signature_hash
    return ChannelUpdate(secp.sign(secret_of(signer), digest), *fields, excess_data=excess)


def make_node(
    number: int, timestamp: int = NOW, addresses: bytes = b"", alias: bytes = b"", features: bytes = b""
) -> NodeAnnouncement:
    """A signed `node_announcement`."""
    fields = (features, timestamp, node_id_of(number), b"\x11\x22\x33", alias.ljust(32, b"\0"), addresses)
    digest = NodeAnnouncement(bytes(64), *fields).signature_hash
    return NodeAnnouncement(secp.sign(secret_of(number), digest), *fields)


def funding_of(scid: int, confirmations: int = 100, amount_sat: int = CAPACITY_SAT) -> Funding:
    """The output that `make_announcement` is about."""
    keys = [secp.pubkey_of(secret) for secret in funding_secrets(scid)]
    txid = hashlib.sha256(b"txid %d" % (scid >> 16)).digest()
    return Funding(txid, amount_sat, funding_script_pubkey(*keys), confirmations)


class FakeFunding:
    """A layer 1: outputs that were put into it."""

    def __init__(self) -> None:
        self.outputs: dict[int, Funding] = {}
        self.lookups = 0
        self.away = False

    async def lookup(self, scids: Sequence[int]) -> list[Funding | None]:
        self.lookups += len(scids)
        if self.away:
            raise FundingUnknown("layer 1 is away")
        return [self.outputs.get(scid) for scid in scids]


class Recorder:
    """An intake's listener that keeps what it hears."""

    def __init__(self) -> None:
        self.taken: list[tuple[SignedGossip, set[bytes]]] = []
        self.refusals: list[tuple[SignedGossip, Refusal]] = []
        self.unknown: list[int] = []
        self.more = asyncio.Event()

    def accepted(self, message: SignedGossip, origins: set[bytes]) -> None:
        self.taken.append((message, set(origins)))
        self.more.set()

    def refused(self, message: SignedGossip, origins: set[bytes], refusal: Refusal) -> None:
        self.refusals.append((message, refusal))

    def unknown_channel(self, scid: int, origin: bytes) -> None:
        self.unknown.append(scid)


def new_view(path: Path, *sinks: GraphSink) -> NetworkView:
    """An empty view, or what is in the file."""
    view = NetworkView(GossipStore(path, CHAIN_HASH), sinks)
    view.load()
    return view


def add_channel(view: NetworkView, scid: int, first: int, second: int, now: float = NOW) -> None:
    """A channel without updates."""
    view.add_channel(make_announcement(scid, first, second), funding_of(scid), now)


def contents(view: NetworkView) -> dict[object, object]:
    """All that a view knows, to compare."""
    known: dict[object, object] = {}
    for scid, row in view.topology.rows.items():
        known[scid] = (
            view.announcement(scid),
            view.update(scid, 0),
            view.update(scid, 1),
            view.topology.spent_height[row],
            view.topology.seen_seconds[row],
            view.funding_txid(scid),
            view.topology.node_ids_of(row),
        )
    for node_id in view.topology.node_index:
        known[node_id] = view.node(node_id)
    return known


class FakePort:
    """A connection that keeps what is sent, decoded."""

    def __init__(self, number: int, features: frozenset[int] = optional(*GOSSIP_FEATURES)) -> None:
        self.node_id = node_id_of(number)
        self.remote_features = features
        self.is_congested = False
        self.sent: list[Message] = []

    def send(self, data: bytes) -> None:
        self.sent.append(decode(data))

    def take(self, *kinds: type[Message]) -> list[Message]:
        """What was sent since the last time, of these kinds; all if none is given."""
        found = [message for message in self.sent if not kinds or isinstance(message, kinds)]
        self.sent = [message for message in self.sent if message not in found]
        return found


class Sink:
    """A graph that writes down what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def channel_added(self, scid: int, node_id_1: bytes, node_id_2: bytes, capacity_sat: int, routable: bool) -> None:
        assert node_id_1 < node_id_2
        self.events.append(("channel added", scid, capacity_sat, routable))

    def channel_updated(self, update: ChannelUpdate, usable: bool) -> None:
        self.events.append(("updated", update.short_channel_id, update.channel_flags & 1, usable))

    def channel_removed(self, scid: int) -> None:
        self.events.append(("channel removed", scid))

    def node_announced(self, announcement: NodeAnnouncement) -> None:
        self.events.append(("node", announcement.node_id))

    def node_removed(self, node_id: bytes) -> None:
        self.events.append(("node removed", node_id))
