"""Attribution data, blinded paths and bad onions over a line of four nodes; the payer's onions are the tests' own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from channeld.bolt.features import Feature
from channeld.bolt.onion import failures as f
from channeld.bolt.onion.blinding import (
    BlindedPath,
    EncryptedData,
    PaymentConstraints,
    PaymentRelay,
    create_blinded_path,
)
from channeld.bolt.onion.payment import (
    PaymentPayload,
    blinded_payloads,
    build_payment_onion,
    final_payload,
    forward_payload,
)
from channeld.bolt.onion.returns import relay_failure
from channeld.channel.state import ShuttingDown
from channeld.node import refusals
from channeld.node.blinded_paths import PaymentPath
from channeld.node.interface import NodeError
from channeld.node.invoices import InvoiceRequest
from channeld.node.onion_messages import Content, IncomingMessage
from tests.integration.test_forwarding import Net
from tests.integration.world import STEP_SECONDS, TestNode, world_in
from tests.onion_support import Outcome, RawPayer

pytestmark = pytest.mark.asyncio(loop_scope="module")
AMOUNT_MSAT = 10_000_000
FEE_MSAT = 1_010
DELTA = 34
FINAL_DELTA = 42
Hops = Sequence[tuple[bytes, PaymentPayload]]


class Line:
    """a - b - c - d, each with the default policy; `a` pays."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.payer = RawPayer(net["a"])
        self.height = 0

    def id(self, name: str) -> bytes:
        return self.net[name].node_id

    def scid(self, link: str) -> int:
        driver = self.net[link[0]].runtime.channels.by_id(self.net.channels[link])
        assert driver is not None
        state: Any = driver.state
        assert isinstance(state.scid, int)
        return state.scid

    def expiry(self, hops_after: int) -> int:
        return self.height + FINAL_DELTA + hops_after * DELTA

    def amount(self, hops_after: int) -> int:
        amount_msat = AMOUNT_MSAT
        for _ in range(hops_after):
            amount_msat += 1000 + amount_msat // 1_000_000
        return amount_msat

    def forwards(self, upto: str) -> list[tuple[bytes, PaymentPayload]]:
        """Payloads of the relays before node `upto`, which gets as much as if `d` were at the end of it all."""
        names = "bcd"[: "bcd".index(upto)]
        return [
            (
                self.id(name),
                forward_payload(self.amount(1 - i), self.expiry(1 - i), self.scid("bc" if name == "b" else "cd")),
            )
            for i, name in enumerate(names)
        ]

    async def pay(
        self, hops: Hops, payment_hash: bytes, amount: int | None = None, expiry: int | None = None
    ) -> Outcome:
        amount_msat = self.amount(2) if amount is None else amount
        cltv_expiry = self.expiry(2) if expiry is None else expiry
        return await self.payer.pay(self.net.channels["ab"], hops, payment_hash, amount_msat, cltv_expiry)

    async def invoice(self, **options: Any) -> tuple[bytes, PaymentPayload]:
        """The hash, and the payload for `d`."""
        made = await self.net["d"].api.create_invoice(AMOUNT_MSAT, "tea", **options)
        record = self.net["d"].runtime.invoices.lookup(made.payment_hash)
        assert record is not None
        return made.payment_hash, final_payload(AMOUNT_MSAT, self.expiry(0), record.payment_secret, AMOUNT_MSAT)

    async def blinded(self, **options: Any) -> tuple[bytes, PaymentPath]:
        record, paths = await self.net["d"].runtime.blinded.ask(InvoiceRequest(AMOUNT_MSAT, **options))
        assert len(paths) == 1
        return record.payment_hash, paths[0]

    def over(self, path: BlindedPath, before: Hops = ()) -> list[tuple[bytes, PaymentPayload]]:
        return [*before, *blinded_payloads(path, AMOUNT_MSAT, self.expiry(0), AMOUNT_MSAT)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def line(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Line]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusals, "INTRODUCTION_DELAY_SECONDS", 0.02)
        async with world_in(Path(tmp_path_factory.mktemp("line"))) as world:
            net = Net(world)
            await net.make("ab", "bc", "cd")
            await net.know(3)
            line = Line(net)
            line.height = (await net["a"].api.info()).block_height
            yield line


async def test_the_features_are_told(line: Line) -> None:
    wanted = (Feature.option_route_blinding, Feature.option_attribution_data, Feature.option_onion_messages)
    (peer,) = await line.net["a"].api.list_peers()
    assert {feature.name for feature in wanted} <= set(peer.features)

    async def announced() -> int | None:
        return line.net["a"].runtime.gossip.graph.node_features(line.id("d"))

    bits = await line.net["a"].until(announced)
    assert all(bits >> (feature + 1) & 1 for feature in wanted)
    invoice = await line.net["d"].api.create_invoice(1_000, "features")
    decoded = await line.net["a"].api.decode(invoice.bolt11)
    assert {"option_attribution_data", "option_route_blinding", "basic_mpp"} <= set(decoded.features)


@pytest.mark.bolt5("local.received.own")
async def test_a_preimage_of_ours_is_not_for_what_we_relay(line: Line) -> None:
    """BOLT 5, "MUST NOT reveal its own preimage when it's not the final recipient": an HTLC that is to be relayed has
    the hash of an invoice of the relay's own. It goes on as it says, to somebody who does not know the preimage."""
    made = await line.net["b"].api.create_invoice(AMOUNT_MSAT, "bait")
    hops = [*line.forwards("d"), (line.id("d"), final_payload(AMOUNT_MSAT, line.expiry(0), bytes(32), AMOUNT_MSAT))]
    outcome = await line.pay(hops, made.payment_hash)
    assert outcome.preimage is None
    assert outcome.erring_hop == 2
    record = line.net["b"].runtime.invoices.lookup(made.payment_hash)
    assert record is not None
    assert record.state == "open"


# --- attribution data ---------------------------------------------------------------------------------------------


async def test_each_hop_says_how_long_it_held_a_payment(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    payment_hash, last = await line.invoice(hold=True, min_final_cltv_expiry_delta=FINAL_DELTA)
    d = line.net["d"]
    paying = line.payer.offer(
        line.net.channels["ab"],
        [*line.forwards("d"), (line.id("d"), last)],
        payment_hash,
        line.amount(2),
        line.expiry(2),
    )

    async def accepted() -> bool:
        return (await d.api.get_invoice(payment_hash)).state == "accepted"

    await d.until(accepted)
    receiver = d.runtime.receiver
    now = receiver._now
    monkeypatch.setattr(receiver, "_now", lambda: now() + 2.0)
    await d.api.settle_invoice(payment_hash)
    outcome = await paying
    assert outcome.preimage is not None
    assert outcome.attribution is not None
    assert outcome.attribution.unproven_hop is None
    first, second, third = outcome.attribution.hold_times
    assert third >= 20  # units of 100 ms
    assert second <= first  # who waits for the next one waits no less
    assert first < 600


async def test_failures_name_their_node_and_the_times_up_to_it(line: Line) -> None:
    payment_hash, last = await line.invoice()
    hops = [*line.forwards("d"), (line.id("d"), last)]
    unknown = await line.pay(hops, os.urandom(32))
    assert (unknown.failure, unknown.erring_hop) == (
        f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, line.height),
        2,
    )
    assert unknown.attribution is not None
    assert (len(unknown.attribution.hold_times), unknown.attribution.unproven_hop) == (3, None)
    poor = replace(hops[1][1], amt_to_forward=AMOUNT_MSAT + 1)  # c would have to be content with less
    refused = await line.pay([hops[0], (line.id("c"), poor), hops[2]], payment_hash)
    assert isinstance(refused.failure, f.FeeInsufficient)
    assert refused.failure.htlc_msat == line.amount(1)
    assert refused.failure.channel_update
    assert refused.erring_hop == 1
    assert refused.attribution is not None
    assert len(refused.attribution.hold_times) == 2
    assert (await line.pay(hops, payment_hash)).preimage is not None


async def test_a_damaged_failure_is_blamed_on_those_between_whom_it_was_damaged(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(secret: bytes, packet: Any, held: int | None = None) -> Any:
        relayed = relay_failure(secret, packet, held)
        return replace(relayed, reason=bytes(8) + relayed.reason[8:])

    monkeypatch.setattr("channeld.node.forwarding.relay_failure", damaged)  # at b and c alike
    _, last = await line.invoice()
    outcome = await line.pay([*line.forwards("d"), (line.id("d"), last)], os.urandom(32))
    assert outcome.erring_hop is None
    assert outcome.attribution is not None
    assert outcome.attribution.unproven_hop == 0


# --- blinded paths ------------------------------------------------------------------------------------------------


async def test_a_payment_to_a_blinded_path_of_ours(line: Line) -> None:
    payment_hash, (path, payinfo) = await line.blinded()
    assert path.first_node_id == line.id("c")
    assert (payinfo.fee_base_msat, payinfo.fee_proportional_millionths) == (1000, 1)
    assert payinfo.cltv_expiry_delta == DELTA + FINAL_DELTA
    assert AMOUNT_MSAT + payinfo.fee_msat(AMOUNT_MSAT) == line.amount(1)
    outcome = await line.pay(line.over(path, line.forwards("c")), payment_hash)
    assert outcome.preimage is not None
    assert sha256(outcome.preimage).digest() == payment_hash
    assert outcome.attribution is not None
    assert outcome.attribution.unproven_hop == 2  # inside of the path nobody tells
    assert len(outcome.attribution.hold_times) == 2
    view = await line.net["d"].api.get_invoice(payment_hash)
    assert (view.state, view.kind, view.received_msat) == ("settled", "blinded", AMOUNT_MSAT)


async def test_a_blinded_payment_may_be_held_too(line: Line) -> None:
    payment_hash, (path, _) = await line.blinded(hold=True)
    hops = line.over(path, line.forwards("c"))
    amount_msat, expiry = line.amount(2), line.expiry(2) + 102  # a hold invoice asks for 144 blocks
    hops = [(node, _later(payload, 102)) for node, payload in hops]
    paying = line.payer.offer(line.net.channels["ab"], hops, payment_hash, amount_msat, expiry)
    d = line.net["d"]

    async def accepted() -> bool:
        return (await d.api.get_invoice(payment_hash)).state == "accepted"

    await d.until(accepted)
    await d.api.cancel_invoice(payment_hash)
    outcome = await paying
    assert isinstance(outcome.failure, f.InvalidOnionBlinding)
    assert outcome.erring_hop == 1


def _later(payload: PaymentPayload, blocks: int) -> PaymentPayload:
    if payload.outgoing_cltv_value is None:
        return payload
    return replace(payload, outgoing_cltv_value=payload.outgoing_cltv_value + blocks)


async def test_a_wrong_way_to_a_blinded_invoice(line: Line) -> None:
    payment_hash, _ = await line.blinded()
    record = line.net["d"].runtime.invoices.lookup(payment_hash)
    assert record is not None
    openly = final_payload(AMOUNT_MSAT, line.expiry(0), record.payment_secret, AMOUNT_MSAT)
    outcome = await line.pay([*line.forwards("d"), (line.id("d"), openly)], payment_hash)
    assert isinstance(outcome.failure, f.IncorrectOrUnknownPaymentDetails)
    _, (other, _) = await line.blinded()  # a path of ours, but of another invoice
    outcome = await line.pay(line.over(other, line.forwards("c")), payment_hash)
    assert isinstance(outcome.failure, f.InvalidOnionBlinding)
    assert outcome.erring_hop == 1
    asked, _ = await line.invoice()  # and an open invoice is not paid over a blinded path
    outcome = await line.pay(line.over(other, line.forwards("c")), asked)
    assert isinstance(outcome.failure, f.InvalidOnionBlinding)


class Blinder:
    """A path b, c, d whose instructions a test may spoil: `b` is the introduction node, `c` is inside."""

    def __init__(self, line: Line, path_id: bytes) -> None:
        self.line = line
        relay = PaymentRelay(DELTA, 1, 1000)
        self.datas = {
            "b": EncryptedData(
                short_channel_id=line.scid("bc"),
                payment_relay=relay,
                payment_constraints=PaymentConstraints(line.expiry(2) + 10, 1),
            ),
            "c": EncryptedData(
                short_channel_id=line.scid("cd"),
                payment_relay=relay,
                payment_constraints=PaymentConstraints(line.expiry(1) + 10, 1),
            ),
            "d": EncryptedData(path_id=path_id),
        }

    def but(self, name: str, **changes: Any) -> Blinder:
        self.datas[name] = replace(self.datas[name], **changes)
        return self

    def path(self) -> BlindedPath:
        hops = [(self.line.id(name), data) for name, data in self.datas.items()]
        return create_blinded_path(hops, os.urandom(32)).path


async def _blinder(line: Line, **options: Any) -> tuple[bytes, Blinder]:
    payment_hash, _ = await line.blinded(**options)
    record = line.net["d"].runtime.invoices.lookup(payment_hash)
    assert record is not None
    return payment_hash, Blinder(line, record.payment_secret)


async def test_a_path_with_a_node_inside(line: Line) -> None:
    for by_node_id in (False, True):
        payment_hash, blinder = await _blinder(line)
        if by_node_id:
            blinder.but("b", short_channel_id=None, next_node_id=line.id("c"))
            blinder.but("c", short_channel_id=None, next_node_id=line.id("d"))
        outcome = await line.pay(line.over(blinder.path()), payment_hash)
        assert outcome.preimage is not None, (by_node_id, outcome)
        assert (await line.net["d"].api.get_invoice(payment_hash)).received_msat == AMOUNT_MSAT


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        ("b", {"payment_constraints": PaymentConstraints(1, 1)}),
        ("b", {"payment_constraints": PaymentConstraints(500_000, 1 << 40)}),
        ("b", {"allowed_features": b"\1"}),
        ("b", {"payment_relay": None}),
        ("b", {"payment_relay": PaymentRelay(DELTA, 1, 0)}),  # less than b asks for
        ("b", {"payment_relay": PaymentRelay(DELTA - 1, 1, 1000)}),
        ("b", {"short_channel_id": 1}),
        ("b", {"short_channel_id": None}),
        ("b", {"short_channel_id": None, "next_node_id": bytes.fromhex("02" + "11" * 32)}),
        ("c", {"payment_constraints": PaymentConstraints(1, 1)}),
        ("c", {"allowed_features": b"\2"}),
        ("c", {"payment_relay": PaymentRelay(DELTA, 1, 0)}),
        ("c", {"short_channel_id": 1}),
        ("d", {"path_id": b"another"}),
        ("d", {"payment_constraints": PaymentConstraints(1, 1)}),
    ],
)
async def test_whatever_is_wrong_in_a_path_looks_the_same_from_outside(
    line: Line, node: str, changes: dict[str, Any]
) -> None:
    payment_hash, blinder = await _blinder(line)
    outcome = await line.pay(line.over(blinder.but(node, **changes).path()), payment_hash)
    assert isinstance(outcome.failure, f.InvalidOnionBlinding), outcome
    assert outcome.erring_hop == 0  # the introduction node
    assert outcome.attribution is not None
    assert (len(outcome.attribution.hold_times), outcome.attribution.unproven_hop) == (1, None)


async def test_one_who_is_introduction_node_and_recipient_answers_openly(line: Line) -> None:
    data = EncryptedData(path_id=b"nobody's")
    path = create_blinded_path([(line.id("d"), data)], os.urandom(32)).path
    outcome = await line.pay(line.over(path, line.forwards("d")), os.urandom(32))
    assert outcome.failure == f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, line.height)
    assert outcome.erring_hop == 2


async def test_paths_need_a_peer_that_knows_them(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channeld.node.blinded_paths._leads_here", lambda _: False)
    payment_hash, (path, payinfo) = await line.blinded()  # then the node is its own introduction node
    assert path.first_node_id == line.id("d")
    assert (payinfo.fee_base_msat, payinfo.cltv_expiry_delta) == (0, FINAL_DELTA)
    outcome = await line.pay(line.over(path, line.forwards("d")), payment_hash)
    assert outcome.preimage is not None
    monkeypatch.setattr("channeld.node.forwarding._knows_blinding", lambda _: False)
    payment_hash, blinder = await _blinder(line)
    refused = await line.pay(line.over(blinder.path()), payment_hash)
    assert isinstance(refused.failure, f.InvalidOnionBlinding)


async def test_a_blinded_invoice_of_a_hash_that_is_taken(line: Line) -> None:
    payment_hash, _ = await line.blinded()
    with pytest.raises(NodeError, match="already"):
        await line.blinded(payment_hash=payment_hash)


# --- bad onions ---------------------------------------------------------------------------------------------------


async def test_onions_that_cannot_be_read(line: Line) -> None:
    payment_hash, last = await line.invoice()
    hops = [*line.forwards("d"), (line.id("d"), last)]
    good = build_payment_onion(hops, os.urandom(32), payment_hash).packet
    cases = (
        (b"\1" + good[1:], f.InvalidOnionVersion.CODE),
        (good[:1] + b"\5" + good[2:], f.InvalidOnionKey.CODE),
        (good[:-1] + bytes((good[-1] ^ 1,)), f.InvalidOnionHmac.CODE),
    )
    for packet, code in cases:
        outcome = await line.payer.pay(
            line.net.channels["ab"], hops, payment_hash, line.amount(2), line.expiry(2), packet=packet
        )
        assert (outcome.code, outcome.sha256_of_onion) == (code, sha256(packet).digest())
    elsewhere = [hops[0], (line.id("d"), hops[1][1]), hops[2]]  # c cannot read what is meant for d
    outcome = await line.pay(elsewhere, payment_hash)
    assert isinstance(outcome.failure, f.InvalidOnionHmac)
    assert outcome.erring_hop == 0  # b tells it for c
    inside = await line.payer.pay(
        line.net.channels["ab"],
        hops,
        payment_hash,
        line.amount(2),
        line.expiry(2),
        path_key=line.id("c"),
    )
    assert inside.code == f.InvalidOnionBlinding.CODE


async def test_an_onion_that_comes_twice(line: Line) -> None:
    payment_hash, last = await line.invoice()
    hops = [*line.forwards("d"), (line.id("d"), last)]
    arguments = (line.net.channels["ab"], hops, payment_hash, line.amount(2), line.expiry(2))
    key = os.urandom(32)
    assert (await line.payer.pay(*arguments, session_key=key)).preimage is not None
    again = await line.payer.pay(*arguments, session_key=key)
    assert again.failure == f.TemporaryNodeFailure()
    assert again.erring_hop == 0


def _changed(hops: Hops, index: int, **changes: Any) -> Hops:
    return [(node, replace(payload, **changes) if i == index else payload) for i, (node, payload) in enumerate(hops)]


async def test_payloads_that_do_not_fit(line: Line) -> None:
    payment_hash, last = await line.invoice()
    hops = [*line.forwards("d"), (line.id("d"), last)]
    cases: list[tuple[Hops, f.Failure, int]] = [
        (_changed(hops, 0, amt_to_forward=None), f.InvalidOnionPayload(2, 0), 0),
        (_changed(hops, 1, outgoing_cltv_value=None), f.InvalidOnionPayload(4, 0), 1),
        (_changed(hops, 0, short_channel_id=None), f.InvalidOnionPayload(6, 0), 0),
        (_changed(hops, 0, short_channel_id=12345), f.UnknownNextPeer(), 0),
        (
            _changed(hops, 2, amt_to_forward=AMOUNT_MSAT + 1),
            f.FinalIncorrectHtlcAmount(AMOUNT_MSAT),
            2,
        ),
        (
            _changed(hops, 2, outgoing_cltv_value=line.expiry(0) + 1),
            f.FinalIncorrectCltvExpiry(line.expiry(0)),
            2,
        ),
        (_changed(hops, 2, payment_data=None), f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, line.height), 2),
    ]
    for changed, failure, node in cases:
        outcome = await line.pay(changed, payment_hash)
        assert (outcome.failure, outcome.erring_hop) == (failure, node)
    even = replace(hops[1][1], unknown_tlvs=((100, b"?"),))
    outcome = await line.pay([hops[0], (line.id("c"), even), hops[2]], payment_hash)
    assert isinstance(outcome.failure, f.InvalidOnionPayload)
    assert (outcome.failure.type, outcome.failure.offset > 0, outcome.erring_hop) == (100, True, 1)


async def test_expiries_that_are_too_near_or_too_far(line: Line) -> None:
    payment_hash, last = await line.invoice()
    hops = [*line.forwards("d"), (line.id("d"), last)]
    before = len(line.net["b"].runtime.channels.switch._onions)
    far = await line.pay(hops, payment_hash, expiry=line.height + 2017)
    assert (far.failure, far.erring_hop) == (f.ExpiryTooFar(), 0)
    assert len(line.net["b"].runtime.channels.switch._onions) == before, "what is refused for ever is remembered"
    last_far = [(line.id("b"), final_payload(AMOUNT_MSAT, line.height + 400_000, bytes(32), AMOUNT_MSAT))]
    far = await line.pay(last_far, payment_hash, expiry=line.height + 400_000)
    # BOLT 4, "A _forwarding node_ MAY, but a _final node_ MUST NOT: [...] return an `expiry_too_far` error."
    assert isinstance(far.failure, f.IncorrectOrUnknownPaymentDetails)
    soon = _changed(hops, 0, outgoing_cltv_value=line.height + 3)
    near = await line.pay(soon, payment_hash, expiry=line.height + 3 + DELTA)
    assert isinstance(near.failure, f.ExpiryTooSoon)
    short = await line.pay(hops, payment_hash, expiry=line.expiry(2) - 1)
    assert isinstance(short.failure, f.IncorrectCltvExpiry)
    assert short.failure.cltv_expiry == line.expiry(1)
    tight = [*_changed(hops, 1, outgoing_cltv_value=line.height + 38)[:2]]
    tight.append((line.id("d"), replace(last, outgoing_cltv_value=line.height + 38)))
    late = await line.pay(tight, payment_hash)
    assert (late.failure, late.erring_hop) == (f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, line.height), 2)


async def test_a_next_node_that_is_away(line: Line) -> None:
    payment_hash, last = await line.invoice()
    hops = [*line.forwards("d"), (line.id("d"), last)]
    c, d = line.net["c"], line.net["d"]
    await d.stop()

    async def gone() -> bool:
        return line.id("d") not in [link.node_id for link in c.runtime.peers.links()]

    await c.until(gone)
    outcome = await line.pay(hops, payment_hash)
    assert isinstance(outcome.failure, f.TemporaryChannelFailure)
    assert outcome.erring_hop == 1
    await d.start()
    await _active(line, c, d)
    assert (await line.pay(hops, payment_hash)).preimage is not None


async def _active(line: Line, *nodes: TestNode) -> None:
    for node in nodes:
        await node.wait_active(line.net.channels["cd"])


@pytest.mark.parametrize("is_blinded", [False, True])
@pytest.mark.parametrize("settles", [True, False])
async def test_a_held_payment_outlives_the_nodes_between(line: Line, is_blinded: bool, settles: bool) -> None:
    d = line.net["d"]
    options = {"hold": True, "min_final_cltv_expiry_delta": FINAL_DELTA}
    if is_blinded:
        payment_hash, blinder = await _blinder(line, **options)
        hops = line.over(blinder.path())
    else:
        payment_hash, last = await line.invoice(**options)
        hops = [*line.forwards("d"), (line.id("d"), last)]
    outcome = line.payer.offer(line.net.channels["ab"], hops, payment_hash, line.amount(2), line.expiry(2))

    async def accepted() -> bool:
        return (await d.api.get_invoice(payment_hash)).state == "accepted"

    await d.until(accepted)
    for name in "bc":
        await line.net[name].restart()
    await line.net.active()
    assert not outcome.done()
    await (d.api.settle_invoice if settles else d.api.cancel_invoice)(payment_hash)
    told = await asyncio.wait_for(outcome, STEP_SECONDS)
    assert told.attribution is not None
    assert told.attribution.unproven_hop == (1 if is_blinded and settles else None)
    if settles:
        assert told.preimage is not None
    elif is_blinded:
        assert isinstance(told.failure, f.InvalidOnionBlinding)
        assert told.erring_hop == 0
    else:
        assert (told.failure, told.erring_hop) == (f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, line.height), 2)
    forwards = await line.net["b"].api.list_forwards(1)
    assert (forwards[0].payment_hash == payment_hash) == settles


# --- onion messages -----------------------------------------------------------------------------------------------


async def test_a_question_and_its_answer_over_nodes_between(line: Line) -> None:
    asker, answerer = line.net["a"].runtime.messenger, line.net["d"].runtime.messenger
    seen = []

    def answer(message: IncomingMessage) -> None:
        seen.append(message)
        assert answerer.reply(message, Content(67, b"the answer"))

    answerer.register(65, answer)
    assert await asker.ask(line.id("d"), Content(65, b"a question")) == Content(67, b"the answer")
    assert [(message.content, message.path_id) for message in seen] == [(Content(65, b"a question"), None)]
    path = answerer.path_to_us(b"our own secret")
    assert path.first_node_id == line.id("c")
    assert await asker.ask(path, Content(65, b"blindly")) == Content(67, b"the answer")
    assert seen[-1].path_id == b"our own secret"
    hops = [(line.id("b"), EncryptedData(short_channel_id=line.scid("bc")))]
    hops.append((line.id("c"), EncryptedData(short_channel_id=line.scid("cd"))))
    by_channels = create_blinded_path([*hops, (line.id("d"), EncryptedData())], os.urandom(32)).path
    assert await asker.ask(by_channels, Content(65, b"by channels")) == Content(67, b"the answer")
    sciddir = bytes((0,)) + line.scid("cd").to_bytes(8, "big")
    first = line.id("c") < line.id("d")
    if first:  # the channel's node 1 is c
        assert await asker.ask(replace(path, first_node_id=sciddir), Content(65, b"?")) == Content(67, b"the answer")


# --- last, for it takes a channel ---------------------------------------------------------------------------------


async def test_a_channel_that_is_being_closed_is_disabled(line: Line) -> None:
    c, d = line.net["c"], line.net["d"]
    held_hash, held = await line.invoice(hold=True, min_final_cltv_expiry_delta=FINAL_DELTA)
    relays = line.forwards("d")
    holding = line.payer.offer(
        line.net.channels["ab"], [*relays, (line.id("d"), held)], held_hash, line.amount(2), line.expiry(2)
    )

    async def accepted() -> bool:
        return (await d.api.get_invoice(held_hash)).state == "accepted"

    await d.until(accepted)
    closing = asyncio.ensure_future(c.api.close_channel(line.net.channels["cd"]))
    driver = c.runtime.channels.by_id(line.net.channels["cd"])
    assert driver is not None
    closes = c.runtime.channels.wait_until(driver, lambda each: isinstance(each.state, ShuttingDown), STEP_SECONDS)
    assert await closes
    payment_hash, last = await line.invoice()
    outcome = await line.pay([*relays, (line.id("d"), last)], payment_hash)
    assert isinstance(outcome.failure, f.ChannelDisabled)
    assert outcome.erring_hop == 1
    await d.api.settle_invoice(held_hash)
    assert (await holding).preimage is not None
    await closing
