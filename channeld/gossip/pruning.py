"""What time and the chain take away: stale channels, spent ones, those of abandoned blocks.

Source: BOLT 7, "Pruning the Network View".
"""

from __future__ import annotations

from collections.abc import Iterable

from channeld.bolt.primitives import output_of, tx_index_of
from channeld.gossip.interface import GossipConfig
from channeld.gossip.view import NetworkView
from wallet.bitcoin import Block


def stale_channels(view: NetworkView, now: float, stale_seconds: int, keep: Iterable[int] = ()) -> list[int]:
    """Channels of which nothing was heard for `stale_seconds`, in either direction; not those of `keep`, our own."""
    # BOLT 7, "if the `timestamp` of the latest `channel_update` in either direction is older than two weeks (1209600
    # seconds): MAY prune the channel." We wait for both: one side that is alive may still be paid to.
    topology = view.topology
    limit = now - stale_seconds
    own = frozenset(keep)
    return [scid for scid, row in topology.rows.items() if topology.last_heard(row) < limit and scid not in own]


def buried_channels(view: NetworkView, height: int, forget_spent_blocks: int) -> list[int]:
    """Channels whose spend has had its 72 blocks."""
    # BOLT 7, "once its funding output has been spent OR reorganized out: SHOULD forget a channel after a 72-block
    # delay."
    topology = view.topology
    return [scid for scid in view.spent if height >= topology.spent_height[topology.rows[scid]] + forget_spent_blocks]


def prune(view: NetworkView, now: float, height: int, config: GossipConfig, own: Iterable[int] = ()) -> list[int]:
    """Forget what is stale or buried; returns it. Nodes without channels go with their last one."""
    gone = {
        *stale_channels(view, now, config.stale_seconds, own),
        *buried_channels(view, height, config.forget_spent_blocks),
    }
    for scid in sorted(gone):
        view.forget(scid)
    return sorted(gone)


def block_connected(view: NetworkView, block: Block, height: int) -> list[int]:
    """Marks channels whose funding this block spends, and brings back those that it funds again. Returns the spent."""
    topology = view.topology
    for scid in list(topology.funded_at(height)):
        row = topology.rows[scid]
        index = tx_index_of(scid)
        there = index < len(block.txs) and block.txs[index].txid() == view.funding_txid(scid)
        if there == bool(topology.spent_height[row]):
            view.set_spent(scid, 0 if there else height)
    spent = []
    for tx in block.txs:
        for txin in tx.inputs:
            txid, vout = txin.outpoint
            found = topology.channel_of_outpoint(txid, vout)
            if found is None or output_of(found) != vout or view.funding_txid(found) != txid:
                continue
            if not topology.spent_height[topology.rows[found]]:
                view.set_spent(found, height)
                spent.append(found)
    return spent


def block_disconnected(view: NetworkView, height: int) -> None:
    """The block at `height` is no more: what it spent is unspent, what it funded is gone until it comes again."""
    topology = view.topology
    for scid in list(view.spent):
        if topology.spent_height[topology.rows[scid]] == height:
            view.set_spent(scid, 0)
    for scid in list(topology.funded_at(height)):
        if not topology.spent_height[topology.rows[scid]]:
            view.set_spent(scid, height)
