"""A small file that follows the channels, and brings their money back when nothing is left but the seed's words.

It has each channel as it was when it was opened. Peers close channels whose state is that old, and our side of them is
swept: what `channeld.backup` makes of the file is treated like an old copy of the database. The file is encrypted for
the seed, so that it may be kept anywhere:

    the line "channeld channels 1" | nonce (12 bytes) | ChaCha20-Poly1305 of
        length (4 bytes) | MessagePack of `ChannelsBackup` | zeros

with the line as associated data. Peers that keep blobs for others have it, too (`peer_storage`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec import Struct
from msgspec.structs import replace

from channeld.channel import machine
from channeld.channel.state import Funded, phase_name
from channeld.node import openings
from channeld.node.bus import EventBus
from channeld.node.channels import Channels, Driver
from channeld.node.identity import Identity
from channeld.paths import write_private

log = structlog.get_logger(__name__)
MAGIC = b"channeld channels 1\n"
GATHER_SECONDS = 0.5
RETRY_SECONDS = 60.0
MAX_PEERS_TOLD = 400
"""So many addresses of peers a peer is given to keep: less than half of what it keeps."""
_NONCE_BYTES = 12
_HEAD_BYTES = len(MAGIC) + _NONCE_BYTES
OVERHEAD_BYTES = _HEAD_BYTES + 16 + 4


class SavedChannel(Struct, frozen=True, array_like=True):
    """A row of the table `channels`."""

    channel_key: int
    channel_id: bytes
    peer_id: bytes
    phase: str
    state: bytes
    created_seconds: int


class PeerAddress(Struct, frozen=True, array_like=True):
    """Where a peer was reached last, or says that it can be."""

    node_id: bytes
    host: str
    port: int


class ChannelsBackup(Struct, frozen=True):
    """What is in the file. `birthday_height`: the first block that may concern the seed."""

    network: str
    node_id: bytes
    birthday_height: int
    channels: tuple[SavedChannel, ...] = ()
    peers: tuple[PeerAddress, ...] = ()


class NoBackup(ValueError):
    """The file is not what was looked for; the text says what it is."""


def backup_key(identity: Identity) -> bytes:
    """Of the encryption."""
    return identity.secret("channel backup")


def seal(backup: ChannelsBackup, key: bytes, size: int = 0) -> bytes:
    """The file's content, of at least `size` bytes."""
    nonce = os.urandom(_NONCE_BYTES)
    packed = msgspec.msgpack.encode(backup)
    plain = (len(packed).to_bytes(4, "big") + packed).ljust(size - OVERHEAD_BYTES + 4, b"\0")
    return MAGIC + nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, MAGIC)


def unseal(data: bytes, key: bytes) -> ChannelsBackup:
    """What `seal` was given. Raises NoBackup."""
    if not data.startswith(MAGIC):
        raise NoBackup("it is no backup of channels")
    nonce, sealed = data[len(MAGIC) : _HEAD_BYTES], data[_HEAD_BYTES:]
    try:
        plain = ChaCha20Poly1305(key).decrypt(nonce, sealed, MAGIC)
        return msgspec.msgpack.decode(plain[4 : 4 + int.from_bytes(plain[:4], "big")], type=ChannelsBackup)
    except (InvalidTag, ValueError, msgspec.MsgspecError) as error:
        raise NoBackup("it is damaged, or of another seed") from error


def _read(path: Path) -> bytes:
    """A file's content; nothing if there is no file. Raises OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _is_known(path: Path, head: bytes | None) -> bool:
    """Whether a file is not there, is empty, or begins so. Raises OSError."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES) in (b"", head)
    except FileNotFoundError:
        return True


class ChannelBackup:
    """Keeps the file, at one place or at several. `address_of` is a peer's, `first_height` the wallet's birthday, None
    while that is not known."""

    def __init__(
        self,
        paths: Sequence[Path],
        identity: Identity,
        network: str,
        channels: Channels,
        address_of: Callable[[bytes], tuple[str, int] | None],
        first_height: Callable[[], int | None],
        bus: EventBus,
    ) -> None:
        self._paths = list(paths)
        self._key = backup_key(identity)
        self._channels = channels
        self._address_of = address_of
        self._first_height = first_height
        self._bus = bus
        self._content = ChannelsBackup(network, identity.node_id, -1)
        self._saved: dict[int, SavedChannel] = {}
        self._strange: dict[int, SavedChannel] = {}
        """In a file, but not in the database."""
        self._heads: dict[Path, bytes] = {}
        """How the files begin that were read or written last: with a nonce that no other has."""
        self._changed = asyncio.Event()
        self.on_changed: Callable[[], None] = lambda: None
        self._behind: list[Path] = []
        """Files that could not be written as they should be now."""
        self._failed: set[Path] = set()
        self._writing: asyncio.Future[None] | None = None

    def load(self) -> None:
        """Read the files; after the channels are loaded."""
        found: list[ChannelsBackup | None] = []
        for path in list(self._paths):
            try:
                found.append(self._opened(path, _read(path)))
            except NoBackup as error:
                self._leave_alone(path, error)
            except OSError:
                found.append(None)  # it may pass: it is looked at again before it is written
        for driver in self._channels.all():
            self.touched(driver)
        if any(content != self._now() for content in found):
            self._mark_changed()

    def _opened(self, path: Path, data: bytes) -> ChannelsBackup | None:
        """What is in a file, which is kept from now on; None if there is none. Raises NoBackup."""
        if not data:
            return None
        found = self.unseal(data)
        self._heads[path] = data[:_HEAD_BYTES]
        self._take_over(found, str(path), path)
        return found

    def returned(self, found: ChannelsBackup, where: str) -> None:
        """What a peer kept: channels that nobody here knows are kept from now on."""
        if self._paths and self._take_over(found, where, self._paths[0]):
            self._mark_changed()

    def _take_over(self, found: ChannelsBackup, where: str, path: Path) -> bool:
        """Whether there was anything new in it, which `path` keeps."""
        self._note_height(found.birthday_height)
        strange = 0
        for saved in found.channels:
            driver = self._channels.by_key(saved.channel_key)
            if driver is not None and not driver.is_over:
                self._saved.setdefault(saved.channel_key, saved)
            elif driver is None and not self._channels.is_known(saved.channel_id):
                strange += saved.channel_key not in self._strange
                self._strange[saved.channel_key] = saved
        if strange:
            self._bus.publish(
                "backup.unknown_channels",
                f"the database does not know {strange} channels of {where}; {path} keeps them. If the database is new "
                f"or old: stop the node, move the database away, and start channeld with --restore-from {path}. If it "
                "is the one that this node always had, they came to nothing: move the file away",
                channels=strange,
                path=str(path),
            )
        return strange > 0

    def _note_height(self, height: int | None) -> None:
        known = [found for found in (height, self._content.birthday_height) if found is not None and found >= 0]
        self._content = replace(self._content, birthday_height=min(known, default=-1))

    def _leave_alone(self, path: Path, error: Exception) -> None:
        self._paths.remove(path)
        self._complain(path, f"{path} is not written to: {error}. Move it away, or name another file")

    def touched(self, driver: Driver) -> None:
        """Something about a channel is durable."""
        state, key = driver.state, driver.channel_key
        saved = self._saved.get(key)
        if driver.is_over or not isinstance(state, Funded):
            if saved is not None:
                del self._saved[key]
                self._mark_changed()
            return
        phase = phase_name(state)
        if saved is not None and (saved.phase == phase or phase not in ("awaiting_funding", "normal")):
            return
        if state.commitments.has_htlcs or openings.is_unproven(state):
            return  # what is known of HTLCs is elsewhere; strangers can propose as much as they like
        blob = machine.encode_state(state)
        self._saved[key] = SavedChannel(key, driver.channel_id, driver.peer_id, phase, blob, driver.created_seconds)
        self._mark_changed()

    # --- for peers that keep it

    @property
    def is_kept(self) -> bool:
        """Whether there is a file at all."""
        return bool(self._paths)

    def seal(self, content: ChannelsBackup, size: int) -> bytes:
        """See `seal`."""
        return seal(content, self._key, size)

    def unseal(self, data: bytes) -> ChannelsBackup:
        """Of this node. Raises NoBackup."""
        found = unseal(data, self._key)
        if (found.network, found.node_id) != (self._content.network, self._content.node_id):
            raise NoBackup(f"it is of the network {found.network}")
        return found

    def for_peer(self, node_id: bytes, size: int) -> ChannelsBackup:
        """What fits into `size` bytes when it is sealed: the peer's own channels first, then the latest. Only channels
        that were in use: of others the database keeps nothing when they come to nothing."""
        now = self._now()
        now = replace(now, peers=now.peers[:MAX_PEERS_TOLD])
        room = size - OVERHEAD_BYTES - len(msgspec.msgpack.encode(replace(now, channels=()))) - 8
        fits = []
        in_use = [saved for saved in now.channels if saved.phase != "awaiting_funding"]
        for saved in sorted(in_use, key=lambda saved: (saved.peer_id != node_id, -saved.channel_key)):
            room -= len(msgspec.msgpack.encode(saved))
            if room < 0:
                break
            fits.append(saved)
        return replace(now, channels=tuple(sorted(fits, key=lambda saved: saved.channel_key)))

    # --- the files

    def _mark_changed(self) -> None:
        self._changed.set()
        self.on_changed()

    async def run(self) -> None:
        """Write what has changed, for ever. Whatever goes wrong is told: channels go on without."""
        while self._paths:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._behind else None):
                    await self._changed.wait()
            await asyncio.sleep(GATHER_SECONDS)
            await self._write_all()

    async def close(self) -> None:
        """Write what is not written yet; after `run` was cancelled."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        if self._changed.is_set():
            await self._write_all()

    async def _write_all(self) -> None:
        """To its end, also if it is cancelled: a thread goes on, and two must not write the same file."""
        self._writing = asyncio.ensure_future(self._write_behind())
        await asyncio.shield(self._writing)

    async def _write_behind(self) -> None:
        if self._changed.is_set():
            self._changed.clear()
            self._behind = list(self._paths)
        self._behind = [path for path in self._behind if not await self._write(path)]

    def _now(self) -> ChannelsBackup:
        self._note_height(self._first_height())
        channels = tuple(saved for _, saved in sorted({**self._strange, **self._saved}.items()))
        addresses = {saved.peer_id: self._address_of(saved.peer_id) for saved in channels}
        peers = tuple(PeerAddress(node_id, *address) for node_id, address in addresses.items() if address is not None)
        return replace(self._content, channels=channels, peers=peers)

    async def _write(self, path: Path) -> bool:
        """Whether it is written, or never will be. Another file may be there than when we looked last: of another node,
        or from before a loss, on a disk that was not there when we started."""
        content = self._now()
        if content.birthday_height < 0:
            return True  # layer 1 was never there: there are no channels
        sealed = seal(content, self._key)
        try:
            while not await asyncio.to_thread(
                write_private, path, sealed, partial(_is_known, path, self._heads.get(path))
            ):
                self._opened(path, await asyncio.to_thread(_read, path))
                if content != (now := self._now()):
                    content, sealed = now, seal(now, self._key)
                    self._mark_changed()  # the others lack what was found
        except NoBackup as error:
            self._leave_alone(path, error)
            return True
        except OSError as error:
            self._complain(path, f"{path}, the channels' backup, is not written: {error.strerror}; it is tried again")
            return False
        self._heads[path] = sealed[:_HEAD_BYTES]
        self._failed.discard(path)
        number = len(content.channels)
        what = f"the backup {path} has {number} channel{'' if number == 1 else 's'}"
        self._bus.publish("backup.written", what, channels=number, path=str(path))
        return True

    def _complain(self, path: Path, sentence: str) -> None:
        """Once until it works again."""
        if path not in self._failed:
            self._failed.add(path)
            self._bus.publish("backup.failed", sentence, path=str(path))
