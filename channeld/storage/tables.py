"""The daemon's tables, as SQLAlchemy Core metadata. The wallet's own tables are in `wallet.store`.

Blobs that hold structures are MessagePack of `msgspec` structs. Ids and hashes are bytes in internal order. Foreign
keys are checked at commit (deferred), because the writer groups rows by statement. A change here needs a migration
under `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
)

from wallet.db.columns import KEY, named_metadata

metadata = named_metadata()


def _channel_key(primary_key: bool = False) -> Column[int]:
    reference = ForeignKey("channels.channel_key", deferrable=True, initially="DEFERRED")
    return Column("channel_key", KEY, reference, nullable=False, primary_key=primary_key, autoincrement=False)


meta = Table("meta", metadata, Column("key", String(64), primary_key=True), Column("value", LargeBinary))
"""`network`, `genesis`, `node_id`, `scores` (`channeld.routing.scoring`, exported)."""

channels = Table(
    "channels",
    metadata,
    Column("channel_key", KEY, primary_key=True, autoincrement=False),
    Column("channel_id", LargeBinary(32), nullable=False, unique=True),
    Column("peer_id", LargeBinary(33), nullable=False, index=True),
    Column("phase", String(32), nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("created_seconds", BigInteger, nullable=False),
)
"""One row per channel, whatever its phase. `channel_key` also numbers the channel's secrets (`node/identity.py`): it is
never used twice. `channel_id` changes once, from the temporary one. `state` is `channel.machine.encode_state`."""

adds = Table(
    "adds",
    metadata,
    _channel_key(primary_key=True),
    Column("offered", Boolean, primary_key=True),
    Column("htlc_id", BigInteger, primary_key=True, autoincrement=False),
    Column("raw", LargeBinary, nullable=False),
)
"""Wire form of every `update_add_htlc` that may have to be sent or read again."""

revocable = Table(
    "revocable",
    metadata,
    _channel_key(primary_key=True),
    Column("commitment_index", BigInteger, primary_key=True, autoincrement=False),
    Column("txid", LargeBinary(32), nullable=False, index=True),
    Column("details", LargeBinary, nullable=False),
)
"""Per remote commitment: what it takes to punish it. `details` is a `channeld.channel.writes.SaveRevocable`."""

watches = Table(
    "watches",
    metadata,
    _channel_key(primary_key=True),
    Column("txid", LargeBinary(32), nullable=False),
    Column("vout", Integer, nullable=False),
    Column("script_pubkey", LargeBinary, nullable=False),
    Column("confirmed_height", BigInteger),
    Column("tx_index", BigInteger),
    Column("amount_sat", BigInteger),
    Column("spent_height", BigInteger),
    Column("spending_tx", LargeBinary),
    Column("funding_inputs", LargeBinary),
    Column("rival_txid", LargeBinary(32)),
    Column("rival_height", BigInteger),
)
"""Funding outputs that the chain follower looks for, and what it has seen of them. `funding_inputs`: outpoints of 36
bytes, as in a transaction; the rival is a transaction in the chain that spends one of them."""

close_facts = Table(
    "close_facts",
    metadata,
    _channel_key(primary_key=True),
    Column("txid", LargeBinary(32), primary_key=True),
    Column("height", BigInteger, nullable=False, index=True),
    Column("position", BigInteger, nullable=False),
    Column("raw", LargeBinary, nullable=False),
)
"""Transactions in the chain that spend a channel's funding output or what came of it; `position` is in the block."""

closes = Table(
    "closes",
    metadata,
    _channel_key(primary_key=True),
    Column("resolution", LargeBinary, nullable=False),
    Column("report", LargeBinary),
    Column("over", Boolean, nullable=False),
)
"""How a channel's end is going: `resolution` is a `channeld.onchain.resolution.Resolution`, `report` (what to tell of
it) a `channeld.onchain.report.CloseReport`."""

peers = Table(
    "peers",
    metadata,
    Column("node_id", LargeBinary(33), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("port", Integer, nullable=False),
    Column("last_connected_seconds", BigInteger, nullable=False),
)
"""The address at which a peer was reached last."""

peer_storage = Table(
    "peer_storage",
    metadata,
    Column("node_id", LargeBinary(33), primary_key=True),
    Column("blob", LargeBinary, nullable=False),
    Column("idle_height", BigInteger),
)
"""What we keep for peers (BOLT 1, "Peer storage"), and since which block they have had no channel with us."""

invoices = Table(
    "invoices",
    metadata,
    Column("payment_hash", LargeBinary(32), primary_key=True),
    Column("created_seconds", BigInteger, nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("record", LargeBinary, nullable=False),
)
"""`record` is a `channeld.node.invoices.InvoiceRecord`."""

payments = Table(
    "payments",
    metadata,
    Column("payment_id", KEY, primary_key=True, autoincrement=False),
    Column("payment_hash", LargeBinary(32), nullable=False, index=True),
    Column("live_hash", LargeBinary(32), unique=True),
    Column("state", String(16), nullable=False),
    Column("record", LargeBinary, nullable=False),
)
"""One row per attempt to pay; at most one per payment hash that has not failed: `live_hash` is that hash, or NULL if it
failed. `state` is the payment's, or "probe" for what is no payment and goes when it is over. `record` is a
`channeld.node.payment_record.PaymentRecord`, with the parts in it."""

preimages = Table(
    "preimages",
    metadata,
    Column("payment_hash", LargeBinary(32), primary_key=True),
    Column("payment_preimage", LargeBinary(32), nullable=False),
)
"""Preimages learnt from peers, committed with the state change that taught them."""

onions = Table(
    "onions",
    metadata,
    Column("replay_key", LargeBinary(32), primary_key=True),
    _channel_key(),
    Column("htlc_id", BigInteger, nullable=False),
    Column("cltv_expiry", BigInteger, nullable=False, index=True),
)
"""Onions seen, until their HTLC's expiry has passed: the same shared secret again is a replay (BOLT 4)."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("verb", String(32), nullable=False),
    Column("arguments", LargeBinary(32), nullable=False),
    Column("reference", LargeBinary),
    Column("created_seconds", BigInteger, nullable=False),
)
"""Keys of money-moving calls: `arguments` is a hash of what was asked, `reference` names what came of it."""

broadcasts = Table(
    "broadcasts",
    metadata,
    Column("txid", LargeBinary(32), primary_key=True),
    Column("raw", LargeBinary, nullable=False),
    Column("label", String(64), nullable=False),
    Column("channel_key", KEY),
    Column("created_seconds", BigInteger, nullable=False),
    Column("confirmed_height", BigInteger),
    Column("beaten_height", BigInteger),
)
"""Transactions to publish again after each block until they are buried."""

channel_policies = Table(
    "channel_policies",
    metadata,
    _channel_key(primary_key=True),
    Column("policy", LargeBinary, nullable=False),
)
"""What the operator asks for forwarding over a channel, where it differs from the default: `policy` is a
`channeld.node.policies.StoredPolicy`."""

forwards = Table(
    "forwards",
    metadata,
    Column("incoming_key", KEY, primary_key=True, autoincrement=False),
    Column("incoming_id", BigInteger, primary_key=True, autoincrement=False),
    Column("outgoing_key", KEY, nullable=False),
    Column("outgoing_id", BigInteger, nullable=False),
    Column("payment_hash", LargeBinary(32), nullable=False),
    Column("incoming_msat", BigInteger, nullable=False),
    Column("outgoing_msat", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("settled_ms", BigInteger, nullable=False, index=True),
)
"""HTLCs that were forwarded and whose preimage came back: committed with it, and so the proof after a crash that the
incoming one is to be settled. Keys are `channel_key` of channels that may be over; times are Unix time in milliseconds.
"""

__all__ = [
    "adds",
    "broadcasts",
    "channel_policies",
    "channels",
    "close_facts",
    "closes",
    "forwards",
    "idempotency",
    "invoices",
    "meta",
    "metadata",
    "onions",
    "payments",
    "peers",
    "preimages",
    "revocable",
    "watches",
]
