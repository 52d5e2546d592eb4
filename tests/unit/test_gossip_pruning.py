"""What time, blocks and floods take away."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from channeld.bolt.primitives import format_short_channel_id
from channeld.gossip.interface import GossipConfig
from channeld.gossip.limits import Conduct, TokenBuckets
from channeld.gossip.pruning import block_connected, block_disconnected, prune
from channeld.gossip.view import NetworkView
from tests.gossip_support import (
    CAPACITY_SAT,
    NOW,
    Sink,
    add_channel,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
)
from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxIn, TxOut

SCID = scid_of(100)
DAY = 24 * 3600
CONFIG = GossipConfig()


def block_with(*txs: Tx) -> Block:
    return Block(BlockHeader(1, bytes(32), bytes(32), NOW, 0, 0), txs)


def spend(view: NetworkView, scid: int, vout: int = 0) -> Tx:
    return Tx(2, (TxIn(OutPoint(view.funding_txid(scid), vout)),), (TxOut(1, b""),), 0)


def test_channels_of_which_nothing_is_heard_for_two_weeks_are_forgotten(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    for number in (1, 2, 3):
        add_channel(view, scid_of(number), number, number + 1)
        view.set_update(make_update(scid_of(number), number, number + 1, NOW))
    view.set_update(make_update(scid_of(2), 3, 2, NOW + DAY))
    assert prune(view, NOW + 14 * DAY, 1000, CONFIG) == []
    assert prune(view, NOW + 14 * DAY + 1, 1000, CONFIG, own=[scid_of(3)]) == [scid_of(1)]
    assert prune(view, NOW + 15 * DAY + 1, 1000, CONFIG) == [scid_of(2), scid_of(3)]
    assert view.topology.node_index == {}


def test_a_channel_without_updates_counts_from_when_it_was_seen(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    add_channel(view, SCID, 1, 2, now=NOW)
    assert prune(view, NOW + 14 * DAY, 1000, CONFIG) == []
    assert prune(view, NOW + 14 * DAY + 1, 1000, CONFIG) == [SCID]


def test_spent_channels_are_forgotten_after_72_blocks(tmp_path: Path) -> None:
    sink = Sink()
    view = new_view(tmp_path / "gossip", sink)
    add_channel(view, SCID, 1, 2)
    view.set_node(make_node(1))
    assert block_connected(view, block_with(spend(view, SCID, vout=1)), 200) == []
    assert block_connected(view, block_with(spend(view, SCID)), 201) == [SCID]
    assert block_connected(view, block_with(spend(view, SCID)), 202) == []
    assert prune(view, NOW, 272, CONFIG) == []
    assert prune(view, NOW, 273, CONFIG) == [SCID]
    assert sink.events[-3:] == [
        ("channel removed", SCID),
        *[("node removed", node) for node in sorted((node_id_of(1), node_id_of(2)))],
    ]


def test_a_spend_that_is_undone_counts_no_longer(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    add_channel(view, SCID, 1, 2)
    block_connected(view, block_with(spend(view, SCID)), 200)
    block_disconnected(view, 200)
    assert prune(view, NOW, 300, CONFIG) == []
    assert view.topology.spent_height[view.topology.rows[SCID]] == 0


def test_a_funding_that_is_reorganised_away_and_back(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    funding = Tx(2, (TxIn(OutPoint(bytes(32), 0)),), (TxOut(CAPACITY_SAT, b""),), 7)
    view.add_channel(make_announcement(SCID, 1, 2), funding_of(SCID)._replace(txid=funding.txid()), NOW)
    row = view.topology.rows[SCID]
    block_disconnected(view, 100)
    assert view.topology.spent_height[row] == 100
    block_connected(view, block_with(funding), 100)  # at another place in the block
    assert view.topology.spent_height[row] == 100
    block_disconnected(view, 100)
    block_connected(view, block_with(spend(view, scid_of(100), 5), funding), 100)
    assert view.topology.spent_height[row] == 0


def test_a_graph_hears_everything_in_order(tmp_path: Path) -> None:
    sink = Sink()
    view = new_view(tmp_path / "gossip", sink)
    add_channel(view, SCID, 1, 2)
    update, node = make_update(SCID, 1, 2), make_node(1)
    view.set_update(update)
    view.set_update(make_update(SCID, 1, 2, NOW + 1, disabled=True))
    view.set_node(node)
    assert sink.events == [
        ("channel added", SCID, CAPACITY_SAT, True),
        ("updated", SCID, update.channel_flags & 1, True),
        ("updated", SCID, update.channel_flags & 1, False),
        ("node", node_id_of(1)),
    ]


def test_names_of_channels() -> None:
    assert format_short_channel_id(539268 << 40 | 845 << 16 | 1) == "539268x845x1"


# --- limits


@given(
    burst=st.integers(1, 5),
    steps=st.lists(st.floats(0, 100), max_size=60),
)
def test_a_bucket_gives_no_more_than_it_holds(burst: int, steps: list[float]) -> None:
    buckets = TokenBuckets(burst, 10.0)
    now = taken = 0.0
    for step in steps:
        now += step
        had = buckets.has("key", now)
        took = buckets.take("key", now)
        assert had is took
        taken += took
        assert taken <= burst + now / 10 + 1e-6


def test_buckets_are_apart_and_full_ones_are_forgotten() -> None:
    buckets = TokenBuckets(2, 10.0)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert buckets.take("b", 0.0)
    assert buckets.take("a", 10.0)
    assert not buckets.take("a", 10.0)
    buckets.clean(15.0)
    assert len(buckets) == 1
    buckets.clean(100.0)
    assert len(buckets) == 0


def test_conduct_is_forgiven_with_time() -> None:
    conduct = Conduct(limit=100.0, half_life_seconds=600.0)
    assert not conduct.is_throttled(0.0)
    for _ in range(5):
        conduct.blame(20.0, 0.0)
    assert conduct.is_throttled(0.0)
    assert not conduct.is_throttled(1.0)
    conduct.blame(100.0, 1.0)
    assert conduct.is_throttled(500.0)
    assert not conduct.is_throttled(700.0)
    assert conduct.may_warn(0.0)
    assert not conduct.may_warn(59.0)
    assert conduct.may_warn(60.0)
