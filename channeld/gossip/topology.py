"""The network in numbers: which channels and nodes are known, and where in the store their messages are.

Arrays, not objects: about 100 bytes a channel. The messages themselves stay on disk.
A location is `offset << 16 | length` of a message in the store; 0 stands for none.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator

from channeld.bolt.primitives import block_of

DISABLED = 1
"""Bit of `flags` for a direction: its last update disables it."""

_ZEROS = (0,) * 64
_MASK64 = (1 << 64) - 1


def outpoint_key(txid: bytes, vout: int) -> int:
    """64 bits of an outpoint; a collision is harmless, because what is found is compared with the whole txid."""
    return (int.from_bytes(txid[:8], "little") + vout * 0x9E37_79B9_7F4A_7C15) & _MASK64


class Topology:
    """Channels by short_channel_id and nodes by id. Rows are reused; a row number is good until its channel goes."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.scid = array("Q")
        self.nodes = (array("I"), array("I"))
        self.capacity_sat = array("Q")
        self.seen_seconds = array("I")
        self.announcement = array("Q")
        self.update = (array("Q"), array("Q"))
        self.timestamp = (array("I"), array("I"))
        self.flags = (array("B"), array("B"))
        self.checksum = (array("I"), array("I"))
        self.spent_height = array("I")
        self.outpoint = array("Q")
        self._columns = (
            *(self.scid, self.capacity_sat, self.seen_seconds, self.announcement, self.spent_height, self.outpoint),
            *(*self.nodes, *self.update, *self.timestamp, *self.flags, *self.checksum),
        )
        self._free: list[int] = []
        self._by_outpoint: dict[int, int] = {}
        self._sorted: list[int] | None = []

        self.node_index: dict[bytes, int] = {}
        self.node_ids: list[bytes] = []
        self.node_channels = array("I")
        self.node_announcement = array("Q")
        self.node_timestamp = array("I")
        self._free_nodes: list[int] = []

    # --- channels

    def __len__(self) -> int:
        return len(self.rows)

    def add(
        self,
        scid: int,
        node_ids: tuple[bytes, bytes],
        capacity_sat: int,
        seen_seconds: int,
        outpoint: int,
        announcement: int,
    ) -> int:
        """A new channel; returns its row. The channel must not be known."""
        first, second = self._use_node(node_ids[0]), self._use_node(node_ids[1])
        row = self._free.pop() if self._free else self._grow()
        self.scid[row] = scid
        self.nodes[0][row] = first
        self.nodes[1][row] = second
        self.capacity_sat[row] = capacity_sat
        self.seen_seconds[row] = seen_seconds
        self.announcement[row] = announcement
        self.outpoint[row] = outpoint
        self.rows[scid] = row
        self._by_outpoint[outpoint] = scid
        if self._sorted is not None:
            if not self._sorted or scid > self._sorted[-1]:
                self._sorted.append(scid)
            else:
                self._sorted = None
        return row

    def _grow(self) -> int:
        """A new row, or rather a few. Free rows are zero in what is not said of a new channel: see `remove`."""
        row = len(self.scid)
        for column in self._columns:
            column.extend(_ZEROS)
        self._free.extend(range(row + len(_ZEROS) - 1, row, -1))
        return row

    def remove(self, scid: int) -> list[bytes]:
        """Forget a channel; returns the nodes that have none left and are forgotten, too."""
        row = self.rows.pop(scid)
        self._free.append(row)
        self._sorted = None
        if self._by_outpoint.get(self.outpoint[row]) == scid:
            del self._by_outpoint[self.outpoint[row]]
        self.scid[row] = 0
        self.announcement[row] = 0
        self.spent_height[row] = 0
        for columns in (self.update, self.timestamp, self.flags, self.checksum):
            columns[0][row] = columns[1][row] = 0
        return [gone for column in self.nodes if (gone := self._release_node(column[row])) is not None]

    def set_update(self, row: int, direction: int, timestamp: int, flags: int, location: int) -> None:
        """The latest `channel_update` of a direction (0: by `node_id_1`)."""
        self.update[direction][row] = location
        self.timestamp[direction][row] = timestamp
        self.flags[direction][row] = flags
        self.checksum[direction][row] = 0

    def node_ids_of(self, row: int) -> tuple[bytes, bytes]:
        """`node_id_1` and `node_id_2`."""
        return self.node_ids[self.nodes[0][row]], self.node_ids[self.nodes[1][row]]

    def channel_of_outpoint(self, txid: bytes, vout: int) -> int | None:
        """The channel that this output may fund (64 bits of it are compared)."""
        return self._by_outpoint.get(outpoint_key(txid, vout))

    def sorted_scids(self) -> list[int]:
        """All channels, ascending. Not to be changed."""
        if self._sorted is None:
            self._sorted = sorted(self.rows)
        return self._sorted

    def scids_between(self, first_block: int, end_block: int) -> list[int]:
        """Channels funded in blocks `first_block` (inclusive) to `end_block` (exclusive), ascending."""
        scids = self.sorted_scids()
        return scids[bisect_left(scids, first_block << 40) : bisect_left(scids, end_block << 40)]

    def channels_of(self, node_id: bytes) -> list[int]:
        """A node's channels. Walks over all of them."""
        index = self.node_index.get(node_id)
        if index is None:
            return []
        first, second = self.nodes
        return [scid for scid, row in self.rows.items() if first[row] == index or second[row] == index]

    def last_heard(self, row: int) -> int:
        """The time (seconds) of the channel's newest update, or when it was announced to us."""
        return max(self.timestamp[0][row], self.timestamp[1][row], self.seen_seconds[row])

    def has_update(self, row: int) -> bool:
        """Whether any direction has a `channel_update`."""
        return bool(self.update[0][row] or self.update[1][row])

    def funded_at(self, height: int) -> Iterator[int]:
        """Channels whose funding transaction is in the block at `height`."""
        yield from (scid for scid in self.scids_between(height, height + 1) if block_of(scid) == height)

    # --- nodes

    def set_node(self, node_id: bytes, timestamp: int, location: int) -> None:
        """The latest `node_announcement` of a node that has a channel."""
        index = self.node_index[node_id]
        self.node_announcement[index] = location
        self.node_timestamp[index] = timestamp

    def _use_node(self, node_id: bytes) -> int:
        index = self.node_index.get(node_id)
        if index is None:
            if self._free_nodes:
                index = self._free_nodes.pop()
                self.node_ids[index] = node_id
            else:
                index = len(self.node_ids)
                self.node_ids.append(node_id)
                self.node_channels.append(0)
                self.node_announcement.append(0)
                self.node_timestamp.append(0)
            self.node_index[node_id] = index
        self.node_channels[index] += 1
        return index

    def _release_node(self, index: int) -> bytes | None:
        self.node_channels[index] -= 1
        if self.node_channels[index]:
            return None
        node_id = self.node_ids[index]
        del self.node_index[node_id]
        self.node_ids[index] = b""
        self.node_announcement[index] = 0
        self.node_timestamp[index] = 0
        self._free_nodes.append(index)
        return node_id

    def locations(self) -> Iterator[array[int]]:
        """All columns of locations: a compaction moves them."""
        yield self.announcement
        yield from self.update
        yield self.node_announcement
