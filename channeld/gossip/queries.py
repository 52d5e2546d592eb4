"""Answers to gossip queries, as generators of wire messages: whoever sends them may stop at any and go on later.

Source: BOLT 7, "Query Messages".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from channeld.bolt.messages import (
    ChannelUpdateChecksums,
    ChannelUpdateTimestamps,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    encode,
)
from channeld.bolt.messages import queries as q
from channeld.bolt.primitives import DecodeError, block_of
from channeld.gossip.view import NetworkView

MAX_REPLY_SCIDS = 2_500
"""24 bytes each, with timestamps and checksums: together less than a message's 65,535."""
_LAST_BLOCK = (1 << 24) - 1
_U32_MAX = 0xFFFF_FFFF
_EVERYTHING = (
    q.QUERY_CHANNEL_ANNOUNCEMENT
    | q.QUERY_CHANNEL_UPDATE_1
    | q.QUERY_CHANNEL_UPDATE_2
    | q.QUERY_NODE_ANNOUNCEMENT_1
    | q.QUERY_NODE_ANNOUNCEMENT_2
)


def range_replies(
    query: QueryChannelRange, view: NetworkView, chain_hash: bytes, max_scids: int = MAX_REPLY_SCIDS
) -> Iterator[bytes]:
    """One or more `reply_channel_range`. Channels without any update, or spent, are left out: no one wants them."""
    first = query.first_blocknum
    end = first + query.number_of_blocks
    if query.chain_hash != chain_hash:
        yield encode(ReplyChannelRange(query.chain_hash, first, query.number_of_blocks, 1, q.encode_short_ids(())))
        return
    topology = view.topology
    scids = [
        scid
        for scid in topology.scids_between(first, min(end, _LAST_BLOCK + 1))
        if topology.has_update(row := topology.rows[scid]) and not topology.spent_height[row]
    ]
    chunks = list(split_by_block(scids, max_scids))
    start = first
    for number, chunk in enumerate(chunks):
        # BOLT 7, "the first `reply_channel_range` message: MUST set `first_blocknum` less than or equal to the
        # `first_blocknum` in `query_channel_range`", and "successive [...]: MUST have `first_blocknum` equal or greater
        # than the previous `first_blocknum`".
        is_last = number == len(chunks) - 1
        # BOLT 7, "the final `reply_channel_range` message: MUST have `first_blocknum` plus `number_of_blocks` equal or
        # greater than the `query_channel_range` `first_blocknum` plus `number_of_blocks`."
        stop = end if is_last else block_of(chunk[-1]) + 1
        # BOLT 7, "MUST set `sync_complete` to `false` if this is not the final `reply_channel_range`."
        yield _reply(query, view, chunk, start, stop - start, is_last)
        if not is_last:
            start = block_of(chunks[number + 1][0]) if block_of(chunks[number + 1][0]) < stop else stop


def split_by_block(scids: Sequence[int], max_scids: int) -> Iterator[Sequence[int]]:
    """At least one piece, each of at most `max_scids`; a block is only split when it does not fit into one piece."""
    position = 0
    while len(scids) - position > max_scids:
        end = position + max_scids
        if block_of(scids[end]) == block_of(scids[end - 1]):
            back = end - 1
            while back > position and block_of(scids[back - 1]) == block_of(scids[end]):
                back -= 1
            end = back if back > position else end
        yield scids[position:end]
        position = end
    yield scids[position:]


def _reply(
    query: QueryChannelRange, view: NetworkView, scids: Sequence[int], first: int, blocks: int, is_last: bool
) -> bytes:
    option = query.query_option or 0
    rows = [view.topology.rows.get(scid) for scid in scids]
    known = [(scid, row) for scid, row in zip(scids, rows, strict=True) if row is not None]
    timestamps = checksums = None
    if option & q.WANT_TIMESTAMPS:
        one, two = view.topology.timestamp
        timestamps = q.encode_timestamps(ChannelUpdateTimestamps(one[row], two[row]) for _, row in known)
    if option & q.WANT_CHECKSUMS:
        pairs = view.checksums([scid for scid, _ in known])
        checksums = tuple(ChannelUpdateChecksums(*pair) for pair in pairs)
    return encode(
        ReplyChannelRange(
            query.chain_hash,
            first,
            min(blocks, _U32_MAX),
            int(is_last),
            q.encode_short_ids(scid for scid, _ in known),
            timestamps,
            checksums,
        )
    )


def parse_short_ids_query(query: QueryShortChannelIds) -> list[tuple[int, int]]:
    """Ids and what is wanted of each. Raises DecodeError for what BOLT 7 does not allow."""
    scids = q.decode_short_ids(query.encoded_short_ids)
    if query.query_flags is None:
        return [(scid, _EVERYTHING) for scid in scids]
    flags = q.decode_query_flags(query.query_flags)
    # BOLT 7, "if `encoded_query_flags` does not decode to exactly one flag per `short_channel_id`: MAY send a
    # `warning`."
    if len(flags) != len(scids):
        raise DecodeError(f"{len(flags)} query flags for {len(scids)} short_channel_ids")
    return list(zip(scids, flags, strict=True))


def short_ids_replies(
    query: QueryShortChannelIds, wanted: Sequence[tuple[int, int]], view: NetworkView, chain_hash: bytes
) -> Iterator[bytes]:
    """Announcements and updates, then nodes, then `reply_short_channel_ids_end`."""
    # BOLT 7, "if does not maintain up-to-date channel information for `chain_hash`: MUST set `full_information` to 0."
    if query.chain_hash != chain_hash:
        yield encode(ReplyShortChannelIdsEnd(query.chain_hash, 0))
        return
    nodes: dict[bytes, None] = {}
    topology = view.topology
    for scid, flags in wanted:
        row = topology.rows.get(scid)
        if row is None:
            continue
        # BOLT 7, "if bit 0 of `query_flag` is set: MUST reply with a `channel_announcement`"
        found = [topology.announcement[row]] if flags & q.QUERY_CHANNEL_ANNOUNCEMENT else []
        for direction, bit in enumerate((q.QUERY_CHANNEL_UPDATE_1, q.QUERY_CHANNEL_UPDATE_2)):
            location = topology.update[direction][row]
            if flags & bit and location:
                found.append(location)
        # BOLT 7, "SHOULD avoid sending duplicate `node_announcements` in response to a single
        # `query_short_channel_ids`."
        for node_id, bit in zip(
            topology.node_ids_of(row), (q.QUERY_NODE_ANNOUNCEMENT_1, q.QUERY_NODE_ANNOUNCEMENT_2), strict=True
        ):
            if flags & bit:
                nodes[node_id] = None
        # Read before the first of them is sent: rows and locations may be others' when the peer wants more.
        yield from [view.store.read(location) for location in found]
    for node_id in nodes:
        raw = view.node(node_id)
        if raw is not None:
            yield raw
    # BOLT 7, "MUST follow these responses with `reply_short_channel_ids_end`."
    yield encode(ReplyShortChannelIdsEnd(query.chain_hash, 1))
