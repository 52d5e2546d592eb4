"""The store: what goes in comes out again, whatever happens to the file in between."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channeld.bolt.messages import queries as q
from channeld.gossip import store as stored
from channeld.gossip.bulk import columns
from channeld.gossip.checksums import update_checksums
from channeld.gossip.store import FIRST_RECORD, GossipStore, StoreFull
from channeld.gossip.topology import Topology, outpoint_key
from channeld.gossip.view import NetworkView
from tests.gossip_support import (
    CAPACITY_SAT,
    CHAIN_HASH,
    NOW,
    add_channel,
    contents,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
)

NODES = 5
PAIRS = [(first, second) for first in range(NODES) for second in range(first)]
SCIDS = [scid_of(100 + number) for number in range(len(PAIRS))]


def random_changes(view: NetworkView, rng: random.Random, count: int) -> None:
    """Channels come, change, are spent and go; nodes announce themselves."""
    for step in range(count):
        number = rng.randrange(len(SCIDS))
        scid, pair = SCIDS[number], PAIRS[number]
        if scid not in view.topology.rows:
            add_channel(view, scid, *pair, now=NOW + step)
            continue
        kind = rng.randrange(6)
        if kind < 3:
            signer, other = rng.choice([pair, pair[::-1]])
            view.set_update(make_update(scid, signer, other, NOW + step, base=rng.randrange(100)))
        elif kind == 3:
            view.set_node(make_node(rng.choice(pair), NOW + step))
        elif kind == 4:
            view.set_spent(scid, rng.choice([0, 700 + step]))
        else:
            view.forget(scid)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), compact=st.booleans())
def test_reloading_gives_back_everything(tmp_path: Path, seed: int, count: int, compact: bool) -> None:
    path = tmp_path / f"gossip{seed}-{count}-{compact}"
    rng = random.Random(seed)
    view = new_view(path)
    random_changes(view, rng, count)
    if compact:
        plan = view.store.plan_compaction(view.topology)
        random_changes(view, rng, count // 2)  # the store goes on being used while the copy is made
        plan.copy()
        before = contents(view)
        view.store.finish_compaction(plan, view.topology)
        assert contents(view) == before
        random_changes(view, rng, 5)
    expected = contents(view)
    view.store.close()
    again = new_view(path)
    assert contents(again) == expected
    again.store.close()
    path.unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_starts_and_takes_more(tmp_path: Path, data: st.DataObject) -> None:
    whole = _some_file(tmp_path)
    size = data.draw(st.integers(0, len(whole)))
    path = tmp_path / "cut"
    path.write_bytes(whole[:size])
    view = new_view(path)
    assert len(view.topology) <= 3
    for scid in view.topology.rows:
        assert view.announcement(scid) == make_announcement(scid, 1, 2).raw
    extra = scid_of(999)
    add_channel(view, extra, 3, 4)
    expected = contents(view)
    view.store.close()
    again = new_view(path)
    assert contents(again) == expected
    again.store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_costs_the_rest_and_nothing_more(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(_some_file(tmp_path))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped"
    path.write_bytes(whole)
    view = new_view(path)
    for scid in view.topology.rows:
        assert view.announcement(scid) == make_announcement(scid, 1, 2).raw
    view.store.close()


def _some_file(tmp_path: Path) -> bytes:
    path = tmp_path / "some"
    if not path.exists():
        view = new_view(path)
        for number in range(3):
            add_channel(view, scid_of(number + 1), 1, 2)
            view.set_update(make_update(scid_of(number + 1), 1, 2))
        view.set_node(make_node(1))
        view.store.close()
    return path.read_bytes()


def test_another_chains_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "gossip"
    view = new_view(path)
    add_channel(view, scid_of(1), 1, 2)
    view.store.close()
    other = GossipStore(path, bytes(32))
    assert list(other.records()) == []
    other.close()


def test_unwritten_records_can_be_read(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    add_channel(view, scid_of(1), 1, 2)
    assert (tmp_path / "gossip").stat().st_size == FIRST_RECORD
    assert view.announcement(scid_of(1)) == make_announcement(scid_of(1), 1, 2).raw
    view.store.flush()
    assert view.announcement(scid_of(1)) == make_announcement(scid_of(1), 1, 2).raw


def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = new_view(tmp_path / "gossip")

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        add_channel(view, scid_of(1), 1, 2)
        view.store.flush()
        assert view.announcement(scid_of(1)) == make_announcement(scid_of(1), 1, 2).raw
        patch.setattr(stored, "MAX_TAIL_BYTES", 100)
        with pytest.raises(StoreFull):
            view.set_update(make_update(scid_of(1), 1, 2))
    expected = contents(view)
    view.store.close()
    assert contents(new_view(tmp_path / "gossip")) == expected


def test_compaction_is_wanted_when_most_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MIN_DEAD_BYTES", 1000)
    view = new_view(tmp_path / "gossip")
    add_channel(view, scid_of(1), 1, 2)
    assert not view.store.wants_compaction()
    for second in range(20):
        view.set_update(make_update(scid_of(1), 1, 2, NOW + second))
    assert view.store.wants_compaction()
    plan = view.store.plan_compaction(view.topology)
    before = view.store.size
    plan.copy()
    view.store.finish_compaction(plan, view.topology)
    assert view.store.size < before / 3
    assert not view.store.wants_compaction()
    assert view.update(scid_of(1), 0) or view.update(scid_of(1), 1)


def test_a_spent_channel_survives_compaction_as_spent(tmp_path: Path) -> None:
    path = tmp_path / "gossip"
    view = new_view(path)
    add_channel(view, scid_of(1), 1, 2)
    view.set_spent(scid_of(1), 800)
    plan = view.store.plan_compaction(view.topology)
    plan.copy()
    view.store.finish_compaction(plan, view.topology)
    view.store.close()
    assert new_view(path).topology.spent_height[0] == 800


def test_nodes_go_with_their_last_channel(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    add_channel(view, scid_of(1), 1, 2)
    add_channel(view, scid_of(2), 2, 3)
    view.set_node(make_node(1))
    view.set_node(make_node(2))
    view.forget(scid_of(1))
    assert view.node(node_id_of(1)) is None
    assert view.node(node_id_of(2)) == make_node(2).raw
    assert view.topology.channels_of(node_id_of(2)) == [scid_of(2)]
    add_channel(view, scid_of(3), 1, 4)  # the row and the node's place are used again
    assert view.node(node_id_of(1)) is None
    assert view.update(scid_of(3), 0) is None


def test_columns_tell_what_the_channels_tell(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    random_changes(view, random.Random(7), 80)
    if SCIDS[0] not in view.topology.rows:
        add_channel(view, SCIDS[0], *PAIRS[0])
    view.set_update(make_update(SCIDS[0], *PAIRS[0], NOW + 1000, disabled=True))
    add_channel(view, scid_of(500), 7, 8)
    view.set_update(make_update(scid_of(500), 7, 8, maximum=2000 * CAPACITY_SAT))  # more than there is
    view.add_channel(make_announcement(scid_of(501), 7, 8, features=b"\x01"), funding_of(scid_of(501)), NOW)
    found = columns(view)
    routable = {channel.scid: channel for channel in view.channels() if channel.routable}
    assert scid_of(501) not in routable
    assert sorted(found.short_channel_id.tolist()) == sorted(routable)
    for index, scid in enumerate(found.short_channel_id.tolist()):
        channel = routable[scid]
        ends = [bytes(found.node_ids[end]) for end in found.ends[index]]
        assert ends == [channel.node_id_1, channel.node_id_2]
        assert found.capacity_sat[index] == channel.capacity_sat
        for direction, policy in enumerate(channel.policies):
            assert bool(found.known[index, direction]) is (policy is not None)
            if policy is not None:
                values = (found.htlc_minimum_msat, found.htlc_maximum_msat, found.fee_base_msat)
                expected = (policy.htlc_minimum_msat, policy.htlc_maximum_msat, policy.fee_base_msat)
                assert tuple(value[index, direction] for value in values) == expected
                assert bool(found.usable[index, direction]) is policy.usable


def test_columns_of_nothing(tmp_path: Path) -> None:
    assert len(columns(new_view(tmp_path / "gossip")).short_channel_id) == 0


def test_checksums_are_those_of_the_plain_way() -> None:
    updates = [make_update(scid_of(1), 1, 2, base=base, excess=b"x" * (base % 2)) for base in range(6)]
    expected = [q.channel_update_checksum(update) for update in updates]
    assert update_checksums([update.raw for update in updates]) == expected
    assert update_checksums([b""]) == [0]


def test_checksums_are_kept_until_the_update_changes(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    scid = scid_of(1)
    add_channel(view, scid, 1, 2)
    first, second = make_update(scid, 1, 2, NOW, base=5), make_update(scid, 1, 2, NOW + 1, base=6)
    direction = first.channel_flags & 1
    view.set_update(first)
    assert view.checksums([scid])[0][direction] == q.channel_update_checksum(first)
    assert view.checksums([scid])[0][1 - direction] == 0
    view.set_update(second)
    assert view.checksums([scid])[0][direction] == q.channel_update_checksum(second)


def test_topology_orders_and_finds() -> None:
    topology = Topology()
    scids = [scid_of(block) for block in (5, 1, 9, 3)]
    for scid in scids:
        topology.add(scid, (node_id_of(1), node_id_of(2)), 1, NOW, outpoint_key(scid.to_bytes(32, "big"), 0), 0)
    assert topology.sorted_scids() == sorted(scids)
    assert topology.scids_between(3, 9) == [scid_of(3), scid_of(5)]
    topology.remove(scid_of(5))
    assert topology.scids_between(0, 100) == [scid_of(1), scid_of(3), scid_of(9)]


def test_a_store_without_a_name_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    named = GossipStore(tmp_path / "gossip", CHAIN_HASH)
    named.append(stored.NODE, b"one")
    nameless = GossipStore(None, CHAIN_HASH, bytes(named.content()))
    assert [record.payload for record in nameless.records()] == [b"one"]
    nameless.append(stored.NODE, b"two")
    assert [record.payload for record in nameless.records()] == [b"one"]
    nameless.flush()
    assert [record.payload for record in nameless.records()] == [b"one", b"two"]
    nameless.dead_bytes = 2 * stored.MIN_DEAD_BYTES
    assert not nameless.wants_compaction()
    assert [path.name for path in tmp_path.iterdir()] == ["gossip"], "also if we were killed now"
    nameless.close()
    named.close()
