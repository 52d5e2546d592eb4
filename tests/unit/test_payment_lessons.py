"""What the failed parts of a payment teach: who is blamed, what is tried next, which words of others count."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channeld.bolt.messages import ChannelUpdate, encode
from channeld.bolt.onion import failures as f
from channeld.bolt.onion.attribution import add_attribution
from channeld.bolt.onion.failures import encode_failure
from channeld.bolt.onion.returns import ReturnPacket, create_failure, relay_failure
from channeld.channel import effects as fx
from channeld.node.payment_lessons import (
    MOST_POLICIES,
    MOST_STUCK,
    Stuck,
    Teacher,
    failed_part,
    learnt_from,
    lessons_of,
    settled_part,
)
from channeld.node.payment_record import PartRecord, PaymentRecord, attempt_view, decode, save
from channeld.routing import Graph, Scorer
from channeld.routing.values import EdgeKey, Hop, Policy, Route
from tests.routing_support import NOW, scid
from wallet.bitcoin.secp import pubkey_of, sign

CHAIN = bytes(range(32))
SECRETS = tuple(bytes([number]) * 32 for number in (1, 2, 3))
KEYS = tuple(bytes([number]) * 32 for number in (11, 12, 13))
NODES = tuple(pubkey_of(key) for key in KEYS)
AMOUNT_MSAT = 1_000_000


def hop(number: int) -> Hop:
    return Hop(scid(number), 0, NODES[number], AMOUNT_MSAT, 200, AMOUNT_MSAT, 160, 0, 40, 0.9)


ROUTE = Route(bytes(33), tuple(hop(number) for number in range(3)), AMOUNT_MSAT + 2_000, 2_000, 200, 0.7, 1.0)
PART = PartRecord(7, AMOUNT_MSAT + 2_000, 200, SECRETS, route=ROUTE, started_seconds=NOW)
DIRECT = PartRecord(7, AMOUNT_MSAT, 160, SECRETS[:1], started_seconds=NOW)


def record(*parts: PartRecord, **fields: Any) -> PaymentRecord:
    return PaymentRecord(
        payment_id=1,
        payment_hash=bytes(32),
        bolt11="",
        destination=NODES[2],
        amount_msat=AMOUNT_MSAT,
        created_seconds=int(NOW),
        parts=parts,
        **fields,
    )


def came_back(packet: ReturnPacket | None = None, **fields: Any) -> fx.HtlcFailed:
    if packet is not None:
        fields |= {"reason": packet.reason, "attribution_data": packet.attribution_data}
    return fx.HtlcFailed(0, b"", bytes(32), AMOUNT_MSAT, **fields)


def said(failure: f.Failure, by: int, held: int | None = 3) -> ReturnPacket:
    """`failure` by a hop, as it reaches us; each hop says how long it held the HTLC (100 ms)."""
    packet = create_failure(SECRETS[by], encode_failure(failure), held)
    for number in reversed(range(by)):
        packet = relay_failure(SECRETS[number], packet, held + by - number if held is not None else None)
    return packet


def ended(packet: ReturnPacket | None = None, part: PartRecord = PART, known: int = 0, **fields: Any) -> PartRecord:
    is_probe = fields.pop("is_probe", False)
    return failed_part(part, came_back(packet, **fields), is_probe, CHAIN, lambda _: known, NOW + 1)


def update_of(number: int, key: bytes, **fields: Any) -> bytes:
    """A signed `channel_update` of the channel of hop `number`."""
    values: dict[str, Any] = {
        "signature": bytes(64),
        "chain_hash": CHAIN,
        "short_channel_id": scid(number),
        "timestamp": 1_000,
        "message_flags": 1,
        "channel_flags": 0,
        "cltv_expiry_delta": 77,
        "htlc_minimum_msat": 1,
        "fee_base_msat": 5_000,
        "fee_proportional_millionths": 9,
        "htlc_maximum_msat": 10**9,
    }
    unsigned = ChannelUpdate(**(values | fields))
    signature = sign(key, unsigned.signature_hash)
    return encode(ChannelUpdate(**(values | fields | {"signature": signature})))


def test_a_channel_without_money_is_left_alone_after_some_attempts() -> None:
    part = ended(said(f.TemporaryChannelFailure(), 1))
    assert (part.end, part.failing_hop, part.failure_code) == ("told", 1, f.TemporaryChannelFailure.CODE)
    assert part.hold_times == (4, 3)
    assert NODES[1].hex() in part.failure
    assert part.failing_key == EdgeKey(scid(2), 0)
    assert "cannot send 1,000,000 msat over" in learnt_from(part)
    key = EdgeKey(scid(2), 0)
    assert lessons_of(record(part)) == lessons_of(record())._replace(stuck={key: [Stuck(AMOUNT_MSAT, NOW + 1)]})
    assert not lessons_of(record(*[part] * MOST_STUCK)).ignored_channels  # out together, they knew no better
    times = [(NOW + 2 * number, NOW + 2 * number + 1) for number in range(MOST_STUCK)]
    again = [replace(part, started_seconds=started, ended_seconds=ended) for started, ended in times]
    assert not lessons_of(record(*again[1:])).ignored_channels
    held = replace(PART, started_seconds=NOW)
    assert lessons_of(record(held, part)).stuck == {key: [Stuck(2 * AMOUNT_MSAT, NOW + 1)]}
    gone = replace(held, state="failed", end="never_sent", ended_seconds=NOW + 0.5)
    assert lessons_of(record(gone, part)).stuck == lessons_of(record(part)).stuck
    assert lessons_of(record(*reversed(again))).ignored_channels == {EdgeKey(scid(2), 0)}
    slow = replace(part, started_seconds=NOW, ended_seconds=NOW + 100)
    assert lessons_of(record(slow, *again)).ignored_channels == {EdgeKey(scid(2), 0)}
    view = attempt_view(record(part), 0)
    assert [hop.hold_time_ms for hop in view.hops] == [400, 300, None]
    assert (view.state, view.failing_hop, view.ended_seconds) == ("failed", 1, NOW + 1)


def test_nodes_and_channels_that_say_no_for_good() -> None:
    node = ended(said(f.TemporaryNodeFailure(), 0))
    assert lessons_of(record(node)).ignored_nodes == {NODES[0]}
    gone = ended(said(f.PermanentChannelFailure(), 0))
    assert lessons_of(record(gone)).ignored_channels == {EdgeKey(scid(1), 0)}
    assert not lessons_of(record(node, gone)).stop
    assert "is left alone" in learnt_from(node)
    assert "is left alone" in learnt_from(gone)


def test_the_payee_has_the_last_word_but_for_parts_that_came_late() -> None:
    refused = ended(said(f.IncorrectOrUnknownPaymentDetails(1, 2), 2))
    assert lessons_of(record(refused)).stop == refused.failure
    late = ended(said(f.MppTimeout(), 2))
    assert not lessons_of(record(late)).stop
    direct = ended(said(f.IncorrectOrUnknownPaymentDetails(1, 2), 0), DIRECT)
    assert lessons_of(record(direct)).stop == direct.failure
    arrived = ended(said(f.IncorrectOrUnknownPaymentDetails(1, 2), 2), is_probe=True)
    assert (arrived.state, arrived.failure) == ("arrived", "")
    assert record(arrived, kind="probe").missing_msat == 0
    other = ended(said(f.FinalIncorrectHtlcAmount(1), 2), is_probe=True)
    assert other.state == "failed"


def test_terms_in_a_failure_count_for_this_payment_alone() -> None:
    raw = update_of(1, KEYS[0])
    wanted = Policy(True, 1, 10**9, 5_000, 9, 77)
    for update in (raw, raw[2:]):  # with and without the message's type
        part = ended(said(f.FeeInsufficient(1, update), 0))
        assert part.policy == wanted
        assert lessons_of(record(part)).policies == {EdgeKey(scid(1), 0): wanted}
        assert "asks for 5,000 msat + 9 ppm and 77 blocks" in learnt_from(part)
    often = lessons_of(record(*[part] * (MOST_POLICIES + 1)))
    assert often.ignored_channels == {EdgeKey(scid(1), 0)}
    closed = ended(said(f.ChannelDisabled(0, update_of(1, KEYS[0], channel_flags=2)), 0))
    assert closed.policy is not None
    assert not closed.policy.enabled


@pytest.mark.parametrize(
    ("raw", "known"),
    [
        (update_of(1, KEYS[1]), 0),  # signed by another node
        (update_of(2, KEYS[0]), 0),  # of another channel
        (update_of(1, KEYS[0], channel_flags=1), 0),  # of the other direction
        (update_of(1, KEYS[0], chain_hash=bytes(32)), 0),
        (update_of(1, KEYS[0]), 1_000),  # not newer than what gossip has
        (update_of(1, KEYS[0])[:-5], 0),
        (b"\x01\x02nonsense", 0),
        (b"", 0),
    ],
)
def test_words_that_do_not_count(raw: bytes, known: int) -> None:
    part = ended(said(f.FeeInsufficient(1, raw), 0), known=known)
    assert part.policy is None
    assert lessons_of(record(part)).ignored_channels == {EdgeKey(scid(1), 0)}


def test_a_damaged_failure_is_blamed_on_two_at_most_if_it_is_attributed() -> None:
    packet = said(f.TemporaryNodeFailure(), 2)
    assert packet.attribution_data is not None
    nobody = ended(ReturnPacket(bytes(len(packet.reason))))
    assert nobody.end == "unreadable"
    assert lessons_of(record(nobody)).ignored_channels == {hop.key for hop in ROUTE.hops[1:]}
    inner = create_failure(SECRETS[2], encode_failure(f.TemporaryNodeFailure()), 1)
    damaged = ReturnPacket(inner.reason[:-1] + b"\x00", inner.attribution_data)
    for number in (1, 0):
        damaged = relay_failure(SECRETS[number], damaged, 1)
    part = ended(damaged)
    assert (part.end, part.unproven_hop, part.hold_times) == ("unreadable", 2, (1, 1))
    assert NODES[1].hex() in part.failure
    lessons = lessons_of(record(part))
    assert (lessons.ignored_channels, lessons.ignored_nodes) == (frozenset({EdgeKey(scid(2), 0)}), frozenset())
    assert lessons_of(record(part, part)).ignored_nodes == {NODES[1]}
    direct = ended(ReturnPacket(bytes(292)), DIRECT)
    assert lessons_of(record(direct)).stop == direct.failure


def test_ends_without_words() -> None:
    never = ended(never_sent=True)
    assert (never.end, lessons_of(record(never))) == ("never_sent", lessons_of(record()))
    closed = ended(on_chain=True)
    assert (closed.end, lessons_of(record(closed)).most_msat) == ("on_chain", {7: 0})
    malformed = ended(failure_code=f.InvalidOnionHmac.CODE)
    assert lessons_of(record(malformed)).ignored_nodes == {NODES[0]}
    direct = ended(part=DIRECT, failure_code=f.InvalidOnionHmac.CODE)
    assert lessons_of(record(direct)).stop == direct.failure


def test_our_own_channel_gets_smaller_parts_after_it_refused_one() -> None:
    refused = replace(PART, state="failed", end="refused", reject_code="insufficient_balance")
    most = lessons_of(record(refused)).most_msat[7]
    assert 0 < most < PART.amount_msat
    smaller = replace(refused, amount_msat=most)
    assert lessons_of(record(refused, smaller)).most_msat[7] < most
    full = replace(refused, reject_code="too_many_htlcs")
    assert lessons_of(record(full)).most_msat == {}
    assert lessons_of(record(*[full] * MOST_STUCK)).most_msat == {7: 0}


def test_hold_times_of_a_success() -> None:
    data = add_attribution(SECRETS[2], None, 5)
    data = add_attribution(SECRETS[1], data, 7)
    data = add_attribution(SECRETS[0], data, 9)
    part = settled_part(PART, data, NOW)
    assert (part.state, part.hold_times, part.unproven_hop) == ("settled", (9, 7, 5), None)
    assert settled_part(PART, bytes(920), NOW).unproven_hop == 0
    assert settled_part(PART, None, NOW).hold_times == ()
    assert settled_part(DIRECT, data, NOW).hold_times == ()


def test_what_is_learnt_for_all_payments() -> None:
    graph, scorer = Graph(), Scorer()
    for number, ends in enumerate(pairwise((ROUTE.source, *NODES))):
        graph.add_channel(scid(number), min(ends), max(ends), 10_000_000)
    teacher = Teacher(lambda: scorer, lambda: graph, lambda: NOW)
    stuck = ended(said(f.TemporaryChannelFailure(), 0))
    assert teacher.teach(stuck, {})
    assert scorer.bounds(graph, EdgeKey(scid(0), 0), NOW)[0] == AMOUNT_MSAT  # type: ignore[index]
    assert scorer.bounds(graph, EdgeKey(scid(1), 0), NOW)[1] < AMOUNT_MSAT  # type: ignore[index]
    scorer.reset()
    assert teacher.teach(stuck, {EdgeKey(scid(1), 0): 5_000})  # it may carry that, and nearly this part beside it
    assert scorer.bounds(graph, EdgeKey(scid(1), 0), NOW) == (0, AMOUNT_MSAT + 5_000 - 1)
    scorer.reset()
    assert teacher.teach(ended(said(f.IncorrectOrUnknownPaymentDetails(1, 2), 2), is_probe=True), {})
    assert all(scorer.bounds(graph, EdgeKey(scid(n), 0), NOW)[0] == AMOUNT_MSAT for n in range(3))  # type: ignore[index]
    scorer.reset()
    assert teacher.teach(ended(said(f.TemporaryNodeFailure(), 1)), {})
    assert len(scorer._nodes) == 1
    assert not teacher.teach(ended(never_sent=True), {})
    assert not teacher.teach(DIRECT, {})


part_ends = st.sampled_from(
    [
        ended(said(f.TemporaryChannelFailure(), 1)),
        ended(said(f.FeeInsufficient(1, update_of(1, KEYS[0])), 0)),
        ended(said(f.TemporaryNodeFailure(), 0)),
        ended(said(f.MppTimeout(), 2)),
        ended(never_sent=True),
        ended(on_chain=True),
        replace(PART, state="failed", end="refused", reject_code="in_flight_limit"),
        PART,
        replace(DIRECT, state="settled"),
    ]
)


@given(st.lists(part_ends, max_size=8), st.booleans())
def test_lessons_survive_being_stored(parts: list[PartRecord], canceled: bool) -> None:
    whole = record(*parts, canceled=canceled, custom_records=((65_537, b"x"),), max_fee_msat=3)
    stored = decode(save(whole).parameters[-1])
    assert stored == whole
    assert lessons_of(stored) == lessons_of(whole)


def test_a_payment_of_an_earlier_version_is_read() -> None:
    part = [7, 1_000, 160, [SECRETS[0]], "failed", "why"]
    fields = {"payment_id": 1, "payment_hash": bytes(32), "bolt11": "lnbcrt", "destination": NODES[0]}
    more = {"amount_msat": 1_000, "created_seconds": 5, "state": "in_flight", "ended_seconds": None}
    rest = {"payment_preimage": None, "failure": ""}
    old = decode(msgspec.msgpack.encode({**fields, **more, **rest, "parts": [part]}))
    assert (old.kind, old.deadline_seconds, old.parts[0].end, old.parts[0].started_seconds) == ("invoice", 0, "", 0)
    assert attempt_view(old, 0).hops[0].node_id == NODES[0]
