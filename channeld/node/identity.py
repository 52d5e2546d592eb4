"""The node's key and its channels' secrets, all from one root of the wallet's seed.

    node secret          = tagged_hash("channeld/node", lightning_root)
    channel seed, n-th   = tagged_hash("channeld/channel", lightning_root || n as 8 bytes, big-endian)

so that the seed words bring them back. `tagged_hash` is BIP 340's.
"""

from __future__ import annotations

from channeld.bolt.transactions import ChannelSecrets
from wallet.bitcoin.encoding import tagged_hash
from wallet.bitcoin.secp import is_valid_secret, pubkey_of


class Identity:
    """`node_secret` (32 bytes) and `node_id` (33 bytes), and a maker of channels' secrets."""

    __slots__ = ("_root", "node_id", "node_secret")

    def __init__(self, lightning_root: bytes) -> None:
        assert len(lightning_root) == 32
        self._root = lightning_root
        self.node_secret = tagged_hash(b"channeld/node", lightning_root)
        assert is_valid_secret(self.node_secret)  # fails once in 2^128 seeds
        self.node_id = pubkey_of(self.node_secret)

    def channel_secrets(self, channel_key: int) -> ChannelSecrets:
        """The secrets of channel number `channel_key`; a number is never used for two channels."""
        return ChannelSecrets.from_seed(tagged_hash(b"channeld/channel", self._root + channel_key.to_bytes(8, "big")))

    def secret(self, purpose: str) -> bytes:
        """Another 32-byte secret of the node, e.g. for `payment_preimage`s that need no storage."""
        return tagged_hash(b"channeld/" + purpose.encode(), self._root)
