"""BOLT 7's rules about single messages, as pure functions. Signatures and layer 1 come later, in `intake`.

Each `check_` function returns why the message is not taken, or None.
"""

from __future__ import annotations

from collections.abc import Container

from channeld.bolt.messages import ChannelAnnouncement, ChannelUpdate, DecodeError, NodeAnnouncement, SignedGossip
from channeld.bolt.messages.addresses import count_hostnames
from channeld.bolt.primitives import block_of, format_short_channel_id
from channeld.bolt.transactions.funding import funding_script_pubkey
from channeld.gossip.interface import Funding, GossipConfig, Refusal
from channeld.gossip.topology import Topology
from channeld.gossip.view import NetworkView
from wallet.bitcoin.secp import is_valid_pubkey

MAX_BYTES: dict[type[SignedGossip], int] = {ChannelAnnouncement: 2048, ChannelUpdate: 512, NodeAnnouncement: 4096}
"""Of a message that is kept and passed on, wire form with type."""
MUST_BE_ONE = 1
DONT_FORWARD = 2
DISABLE = 2

_OTHER_CHAIN = Refusal("it is about another chain")
_KNOWN = Refusal("it is known already")
_BLACKLISTED = Refusal("its node is blacklisted")
TOO_LONG = Refusal("it is longer than what is passed on here")
"""BOLT 7, "MAY choose NOT to for messages longer than the minimum expected length."""


def check_announcement(
    message: ChannelAnnouncement, chain_hash: bytes, topology: Topology, blacklist: Container[bytes], height: int
) -> Refusal | None:
    """Before signatures. A known channel between other nodes passes: see `conflicts`."""
    # BOLT 7, "if the specified `chain_hash` is unknown to the receiver: MUST ignore the message."
    if message.chain_hash != chain_hash:
        return _OTHER_CHAIN
    # BOLT 7, "MUST set `node_id_1` and `node_id_2` [...] such that `node_id_1` is the lexicographically-lesser"
    if message.node_id_1 >= message.node_id_2:
        return Refusal("node_id_1 must be the lesser of the two (BOLT 7)", blame=True)
    # BOLT 7, "if `node_id_1` OR `node_id_2` are blacklisted: SHOULD ignore the message."
    if message.node_id_1 in blacklist or message.node_id_2 in blacklist:
        return _BLACKLISTED
    if is_known(message, topology):
        return _KNOWN
    # BOLT 7, "if the `short_channel_id`'s output does NOT have at least 6 confirmations: MAY accept the message if the
    # output is close to 6 confirmations, in case the receiving node hasn't received the latest block(s) yet."
    if block_of(message.short_channel_id) > height:
        return Refusal(f"{format_short_channel_id(message.short_channel_id)} is in a block that is not there yet")
    return None


def is_known(message: ChannelAnnouncement, topology: Topology) -> bool:
    """Whether the channel is known, between the same nodes."""
    row = topology.rows.get(message.short_channel_id)
    return row is not None and topology.node_ids_of(row) == (message.node_id_1, message.node_id_2)


def check_funding(message: ChannelAnnouncement, funding: Funding | None, minimum_depth_blocks: int) -> Refusal | None:
    """What layer 1 says of the output that `short_channel_id` names."""
    # BOLT 7, "if the `short_channel_id`'s output does NOT correspond to a P2WSH (using `bitcoin_key_1` and
    # `bitcoin_key_2`, as specified in BOLT #3) OR the output is spent: MUST ignore the message."
    scid = message.short_channel_id
    if funding is None:
        return Refusal(f"{format_short_channel_id(scid)} is no unspent output")
    if funding.script_pubkey != funding_script_pubkey(message.bitcoin_key_1, message.bitcoin_key_2):
        return Refusal(f"{format_short_channel_id(scid)} does not pay to its bitcoin keys", blame=True)
    # BOLT 7, "if the `short_channel_id`'s output does NOT have at least 6 confirmations: [...] SHOULD ignore"
    if funding.confirmations < minimum_depth_blocks:
        return Refusal(f"{format_short_channel_id(scid)} has only {funding.confirmations} confirmations")
    return None


def check_update(
    message: ChannelUpdate, chain_hash: bytes, view: NetworkView, config: GossipConfig, now: float
) -> Refusal | None:
    """What can be said without the channel being known."""
    # BOLT 7, "if the specified `chain_hash` value is unknown [...]: MUST ignore the channel update."
    if message.chain_hash != chain_hash:
        return _OTHER_CHAIN
    # BOLT 7, "MUST NOT forward such a `channel_update` to other peers, for privacy reasons."
    if message.message_flags & DONT_FORWARD:
        return Refusal("it is not to be forwarded, and about none of our channels")
    # BOLT 7, "if the `timestamp` is unreasonably far in the future: MAY discard the `channel_update`."
    if message.timestamp > now + config.future_seconds:
        return Refusal("it is from the future")
    # BOLT 7, "if the `timestamp` of the latest `channel_update` in either direction is older than two weeks [...]
    # MAY ignore the channel."
    if message.timestamp < now - config.stale_seconds:
        return Refusal("it is too old")
    row = view.topology.rows.get(message.short_channel_id)
    return check_newer(message, view, row, config) if row is not None else None


def check_newer(message: ChannelUpdate, view: NetworkView, row: int, config: GossipConfig) -> Refusal | None:
    """What is to be said when the channel is known: again when the signature was looked at."""
    topology = view.topology
    direction = message.channel_flags & 1
    # BOLT 7, "if the channel output has been spent: MUST ignore `channel_update`s, unless they have the `disable` bit
    # set to 1."
    if topology.spent_height[row] and not message.channel_flags & DISABLE:
        return Refusal("its channel is spent")
    location = topology.update[direction][row]
    if not location:
        return None
    # BOLT 7, "if `timestamp` is lower than that of the last-received `channel_update` [...]: SHOULD ignore"
    known = topology.timestamp[direction][row]
    if message.timestamp < known:
        return Refusal("it is older than what is known")
    # The very same one is no news even where updates that change nothing are welcome: it would go round for ever.
    if message.timestamp - known < max(config.redundant_seconds, 1):
        same = _policy_part(view.store.read(location)) == _policy_part(message.raw)
        if message.timestamp == known:
            # BOLT 7, "if the fields below `timestamp` are equal: SHOULD ignore this message", and if they differ "MAY
            # blacklist this `node_id`": we only keep the first, since the sender is not the one at fault.
            return _KNOWN if same else Refusal("it contradicts another one of the same second")
        if same:
            return Refusal("it changes nothing")
    return None


def _policy_part(raw: bytes) -> bytes:
    return raw[110:]


def check_node(
    message: NodeAnnouncement, view: NetworkView, config: GossipConfig, blacklist: Container[bytes], now: float
) -> Refusal | None:
    """Before the signature. Whether the node is known is not looked at here."""
    if message.node_id in blacklist:
        return _BLACKLISTED
    # BOLT 7, "if `timestamp` is NOT greater than the last-received `node_announcement` from this `node_id`: SHOULD
    # ignore the message."
    topology = view.topology
    index = topology.node_index.get(message.node_id)
    if index is not None and topology.node_announcement[index] and message.timestamp <= topology.node_timestamp[index]:
        return _KNOWN
    if message.timestamp > now + config.future_seconds:
        return Refusal("it is from the future")
    # BOLT 7, "if `node_id` is NOT a valid compressed public key: SHOULD send a `warning`. [...] MUST NOT process"
    if index is None and not is_valid_pubkey(message.node_id):
        return Refusal("node_id is not a valid public key (BOLT 7)", blame=True)
    # BOLT 7, "if `addrlen` is insufficient to hold the address descriptors of the known types: SHOULD send a
    # `warning`."
    try:
        hostnames = count_hostnames(message.addresses)
    except DecodeError as error:
        return Refusal(f"addresses cannot be read: {error}", blame=True)
    # BOLT 7, "if more than one `type 5` address is announced: [...] MUST not forward the `node_announcement`."
    if hostnames > 1:
        return Refusal("it has more than one DNS hostname")
    return None
