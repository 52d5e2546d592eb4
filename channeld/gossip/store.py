"""Gossip on disk: one append-only file of messages as they came.

    file   = "channeld gossip 1\\n" | chain_hash (32) | record*
    record = kind (1) | length of payload (2) | CRC-32 of kind and payload (4) | payload       big-endian

    CHANNEL  payload = funding txid (32) | capacity in sat (8) | first seen, Unix seconds (4) | channel_announcement
    UPDATE   payload = channel_update
    NODE     payload = node_announcement
    FORGET   payload = short_channel_id (8)
    SPENT    payload = short_channel_id (8) | height of the spending block, 0: unspent again (4)

A later record replaces an earlier one about the same thing. Gossip can be had again from any peer, so nothing here
waits for the disk, and a file that cannot be read, from some byte on or at all, is cut there and costs a few queries.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from channeld.gossip.topology import Topology

if TYPE_CHECKING:
    from channeld.gossip.compaction import Compaction

log = structlog.get_logger(__name__)

MAGIC: Final = b"channeld gossip 1\n"
FIRST_RECORD: Final = len(MAGIC) + 32

CHANNEL: Final = 1
UPDATE: Final = 2
NODE: Final = 3
FORGET: Final = 4
SPENT: Final = 5

RECORD_HEAD: Final = struct.Struct(">BHI")
CHANNEL_HEAD: Final = struct.Struct(">32sQI")
SPENT_BODY: Final = struct.Struct(">QI")
_HEAD_BYTES: Final = RECORD_HEAD.size
_CHANNEL_BYTES: Final = _HEAD_BYTES + CHANNEL_HEAD.size

TAIL_BYTES: Final = 256 * 1024
"""What was appended is written when it is this much, or when it is asked for."""
MAX_TAIL_BYTES: Final = 32 * 1024 * 1024
MIN_DEAD_BYTES: Final = 8 * 1024 * 1024
READ_BYTES: Final = 4 * 1024 * 1024


class StoreFull(Exception):
    """The disk takes no more, and memory is not meant to."""


class Record(NamedTuple):
    """`offset` is that of the payload."""

    kind: int
    offset: int
    payload: bytes


class GossipStore:
    """The file. `read` and `append` do not block for longer than the page cache does."""

    def __init__(self, path: Path | None, chain_hash: bytes, content: bytes = b"") -> None:
        """Without a path the file has no name, begins with `content`, is never compacted, and is gone with the process,
        however that ends. Raises OSError if the file cannot be created."""
        self.path = path
        self.dead_bytes = 0
        self._header = MAGIC + chain_hash
        self._tail = bytearray()
        self._failing = False
        self._fd = (
            _open_nameless(content) if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        )
        if os.pread(self._fd, FIRST_RECORD, 0) != self._header:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._header, 0)
        self._written = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Write what was appended, and close."""
        self.flush()
        os.close(self._fd)

    @property
    def size(self) -> int:
        """Bytes of the file, with what is not written yet."""
        return self._written + len(self._tail)

    # --- records

    def records(self) -> Iterator[Record]:
        """All records from the start. Cuts the file where a record is broken. For the start only."""
        position = FIRST_RECORD
        buffer, base = b"", position
        unpack, crc32 = RECORD_HEAD.unpack_from, zlib.crc32
        while True:
            start = position - base
            body = start + _HEAD_BYTES
            if body <= len(buffer):
                kind, length, crc = unpack(buffer, start)
                end = body + length
                if end <= len(buffer):
                    payload = buffer[body:end]
                    if crc32(payload, kind) != crc:
                        break
                    yield Record(kind, base + body, payload)
                    position = base + end
                    continue
            more = os.pread(self._fd, READ_BYTES, base + len(buffer))
            if not more:
                break
            buffer, base = buffer[start:] + more, position
        if position < self._written:
            log.warning("gossip store cut", path=str(self.path), offset=position, lost_bytes=self._written - position)
            os.ftruncate(self._fd, position)
            self._written = position

    def append(self, kind: int, payload: bytes) -> int:
        """Adds a record; returns the offset of its payload. Raises StoreFull."""
        tail = self._tail
        size = len(tail)
        if size > MAX_TAIL_BYTES:
            raise StoreFull(f"{self.path} cannot be written")
        offset = self._written + size + _HEAD_BYTES
        tail += _record(kind, payload)
        if len(tail) >= TAIL_BYTES and not self._failing:
            self.flush()
        return offset

    def read(self, location: int) -> bytes:
        """The message at a location."""
        offset, length = location >> 16, location & 0xFFFF
        if offset >= self._written:
            start = offset - self._written
            return bytes(self._tail[start : start + length])
        return os.pread(self._fd, length, offset)

    def content(self) -> bytearray:
        """The whole file, with what was appended."""
        self.flush()
        data = bytearray(self._written)
        done = 0
        while done < len(data) and (count := os.preadv(self._fd, [memoryview(data)[done:]], done)):
            done += count
        return data

    def flush(self) -> None:
        """Write what was appended. A disk that refuses is tried again with the next flush."""
        if not self._tail:
            return
        try:
            done = os.pwrite(self._fd, self._tail, self._written)
        except OSError as error:
            if not self._failing:
                log.error("gossip store cannot be written", path=str(self.path), reason=str(error))
            self._failing = True
            return
        self._failing = done < len(self._tail)
        self._written += done
        del self._tail[:done]

    # --- compaction

    def wants_compaction(self) -> bool:
        """Whether more than half of the file is about things that are gone or were replaced."""
        return self.path is not None and self.dead_bytes > max(MIN_DEAD_BYTES, self.size - self.dead_bytes)

    def plan_compaction(self, topology: Topology) -> Compaction:
        """What to copy. `Compaction.copy` may then run in a thread while the store goes on being used."""
        from channeld.gossip.compaction import Compaction  # numpy, which a small network never needs

        assert self.path is not None, "it wants no compaction"
        self.flush()
        groups = (
            ([topology.announcement], _CHANNEL_BYTES),
            (list(topology.update), _HEAD_BYTES),
            ([topology.node_announcement], _HEAD_BYTES),
        )
        spent = b"".join(
            _record(SPENT, SPENT_BODY.pack(scid, topology.spent_height[row]))
            for scid, row in topology.rows.items()
            if topology.spent_height[row]
        )
        return Compaction(self.path, self._header, self._written, groups, spent)

    def finish_compaction(self, done: Compaction, topology: Topology) -> None:
        """Append what came since the plan, put the new file in the old one's place, and move all locations."""
        assert self.path is not None, "nothing was planned"
        self.flush()
        if self._tail:
            done.discard()
            return
        new_fd = os.open(done.new_path, os.O_RDWR | os.O_CLOEXEC)
        shift = os.fstat(new_fd).st_size - done.snapshot_bytes
        position = done.snapshot_bytes
        while position < self._written:
            position += os.pwrite(new_fd, os.pread(self._fd, READ_BYTES, position), position + shift)
        os.replace(done.new_path, self.path)
        os.close(self._fd)
        self._fd = new_fd
        self._written += shift
        self.dead_bytes = 0
        for column in topology.locations():
            done.move(column, shift)


def _open_nameless(content: bytes) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return os.dup(file.fileno())


def _record(kind: int, payload: bytes) -> bytes:
    return RECORD_HEAD.pack(kind, len(payload), zlib.crc32(payload, kind)) + payload
