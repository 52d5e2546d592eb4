"""What the next parts of a payment may cost and how many they may be, while others are out."""

from __future__ import annotations

from typing import Any, cast

import pytest
from msgspec.structs import replace

from channeld.node.payment_lessons import lessons_of
from channeld.node.payment_plan import MOST_PARTS, Planner
from channeld.node.payment_progress import Live
from channeld.node.payment_record import PartRecord, PaymentRecord
from channeld.node.payments import Payments
from channeld.routing.values import Hop, Route
from tests.routing_support import NOW, node, scid

AMOUNT_MSAT = 1_000_000
MOST_FEE_MSAT = 5_000


def part(amount_msat: int, fee_msat: int, state: str = "in_flight") -> PartRecord:
    hop = Hop(scid(0), 0, node(1), amount_msat, 200, amount_msat, 160, fee_msat, 40, 0.9)
    route = Route(node(0), (hop,), amount_msat + fee_msat, fee_msat, 200, 0.9, 1.0)
    return PartRecord(7, amount_msat + fee_msat, 200, (), cast("Any", state), route=route, started_seconds=NOW)


def record(*parts: PartRecord) -> PaymentRecord:
    return PaymentRecord(
        payment_id=1,
        payment_hash=bytes(32),
        bolt11="",
        destination=node(1),
        amount_msat=AMOUNT_MSAT,
        created_seconds=int(NOW),
        parts=parts,
        kind="probe",
        max_fee_msat=MOST_FEE_MSAT,
        max_parts=3,
    )


class Anybody:
    """Takes payments in parts."""

    def takes_parts(self, _: bytes) -> bool:
        return True


def test_a_lost_part_has_what_the_others_leave_of_the_limits() -> None:
    planner = Planner(node(0), cast("Any", None), cast("Any", Anybody()), lambda: 100, lambda: True, lambda: NOW)
    lost = record(part(400_000, 1_001), part(350_000, 2_000, "failed"), part(250_000, 998, "settled"))
    wish = planner._wish(lost, None, lessons_of(lost), [])
    assert (wish.amount_msat, wish.max_fee_msat, wish.max_parts) == (350_000, MOST_FEE_MSAT - 1_999, 2)
    assert [part.state for part in wish.parts] == ["in_flight", "settled"]
    assert planner.room(record(*[part(1, 0)] * 3)) == 0
    assert planner.room(record(*[part(1, 0, "failed")] * (MOST_PARTS - 1))) == 1


@pytest.mark.parametrize(("amount_msat", "fee_msat"), [(600_001, 0), (600_000, MOST_FEE_MSAT - 999)])
async def test_nothing_is_offered_beyond_the_amount_and_the_limit(amount_msat: int, fee_msat: int) -> None:
    payments = Payments(*cast("Any", [None] * 8))
    live = Live(record(part(400_000, 1_000)))
    before = live.record
    with pytest.raises(AssertionError, match="more than the amount"):
        payments._send(live, [cast("Any", (None, part(amount_msat, fee_msat), None))])
    assert live.record is before
    assert replace(before, parts=(*before.parts, part(600_000, MOST_FEE_MSAT - 1_000))).missing_msat == 0
