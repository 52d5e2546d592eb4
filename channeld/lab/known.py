"""What a running daemon knows of the public network: read from a copy of its gossip file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from channeld.gossip.store import GossipStore
from channeld.gossip.view import NetworkView, PublicChannel
from channeld.paths import DataPaths
from wallet.bitcoin.address import BY_NAME


def known_channels(paths: DataPaths) -> dict[int, PublicChannel]:
    """Public channels by short_channel_id; none before the daemon has written its file."""
    if not paths.gossip.exists():
        return {}
    with tempfile.TemporaryDirectory(prefix="channeld-gossip-") as folder:
        copy = Path(folder, "gossip")
        shutil.copy(paths.gossip, copy)
        view = NetworkView(GossipStore(copy, BY_NAME[paths.network].chain_hash))
        try:
            view.load()
            return {channel.scid: channel for channel in view.channels()}
        finally:
            view.store.close()
