"""ZeroMQ notifications as bitcoind publishes them: new tips, blocks, transactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wallet.bitcoin import Tx
from wallet.regtest.chain import TipChange
from wallet.regtest.errors import StartupError
from wallet.regtest.node import Node
from wallet.regtest.pool import Entry

TOPICS = ("pubhashblock", "pubhashtx", "pubrawblock", "pubrawtx", "pubsequence")
_HIGH_WATER_MARK = 1000


class ZmqPublisher:
    """Publishes `(topic, body, sequence number as u32 little-endian)` on the addresses that were asked for.

    Hashes are sent reversed, as bitcoind does. Raises StartupError if an address cannot be bound.
    """

    def __init__(self, node: Node, settings: Sequence[tuple[str, str]]) -> None:
        import zmq  # not needed unless somebody asks for notifications, and not small

        self._context: Any = zmq.Context()
        self._sockets: dict[str, Any] = {}
        self._by_topic: dict[str, list[Any]] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._node = node
        for kind, address in settings:
            if address not in self._sockets:
                socket = self._context.socket(zmq.PUB)
                socket.set_hwm(_HIGH_WATER_MARK)
                socket.setsockopt(zmq.LINGER, 0)
                self._sockets[address] = socket
                try:
                    socket.bind(address)
                except zmq.ZMQError as error:
                    self.close()
                    raise StartupError(f"ZeroMQ cannot publish on {address}: {error}") from error
            self._by_topic.setdefault(kind.removeprefix("pub"), []).append(self._sockets[address])
        node.chain.on_change.append(self._on_change)
        node.mempool.pool.on_added.append(self._on_added)
        node.mempool.pool.on_removed.append(self._on_removed)

    def close(self) -> None:
        """Close all sockets; what was not sent is dropped."""
        for socket in self._sockets.values():
            socket.close()
        self._by_topic.clear()
        self._context.term()

    def _send(self, topic: str, body: bytes) -> None:
        for index, socket in enumerate(self._by_topic.get(topic, ())):
            number = self._numbers.get((topic, index), 0)
            self._numbers[topic, index] = (number + 1) & 0xFFFF_FFFF
            socket.send_multipart((topic.encode(), body, number.to_bytes(4, "little")), copy=True)

    def _send_tx(self, tx: Tx, raw: bytes | None = None) -> None:
        if "hashtx" in self._by_topic:
            self._send("hashtx", tx.txid()[::-1])
        if "rawtx" in self._by_topic:
            self._send("rawtx", raw or tx.serialize())

    def _on_added(self, entry: Entry, sequence: int) -> None:
        self._send_tx(entry.tx, entry.raw)
        self._send("sequence", entry.txid[::-1] + b"A" + sequence.to_bytes(8, "little"))

    def _on_removed(self, entry: Entry, reason: str, sequence: int) -> None:
        if reason != "block":
            self._send("sequence", entry.txid[::-1] + b"R" + sequence.to_bytes(8, "little"))

    def _on_change(self, change: TipChange) -> None:
        for node, block in change.disconnected:
            for tx in block.txs:
                self._send_tx(tx)
            self._send("sequence", node.hash[::-1] + b"D")
        for node, block in change.connected:
            for tx in block.txs:
                self._send_tx(tx)
            self._send("sequence", node.hash[::-1] + b"C")
        if change.connected:
            tip = self._node.chain.tip
            self._send("hashblock", tip.hash[::-1])
            if "rawblock" in self._by_topic:
                self._send("rawblock", self._node.chain.raw_block(tip))
