"""Channels with LDK that end on chain: closed by either with HTLCs pending both ways, and a revoked state of LDK's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import grpc
import pytest

from channeld.lab import DaemonProcess
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.steps import (
    CAPACITY_SAT,
    SUCCEEDED,
    hold_invoice,
    ldk_holds,
    ldk_opens,
    pay_ldk,
    wait_accepted,
    we_open,
)

pytestmark = pytest.mark.interop
FAILED = payments_pb2.PAYMENT_STATE_FAILED
AT_REST = {"taken", "theirs", "ours", "none", "uneconomic", "lost"}


class Pending:
    """Four HTLCs: of each side's two, one is claimed on chain, the other times out."""

    def __init__(self) -> None:
        self.ours: list[tuple[asyncio.Task[Any], bytes, bytes]] = []
        self.theirs: list[bytes] = []
        """Preimages of hold invoices of ours."""

    async def set_up(self, alice: DaemonProcess, ldk: LdkPeer) -> None:
        """Until all are irrevocably committed."""
        for amount_msat in (40_000_000, 41_000_000):
            self.ours.append(await ldk_holds(alice, ldk, amount_msat))
        for amount_msat, delta in ((50_000_000, 60), (51_000_000, 40)):
            preimage = os.urandom(32)
            invoice = await hold_invoice(alice, amount_msat, preimage, min_final_cltv_expiry_delta_blocks=delta)
            # LDK adds some blocks, so that nobody can tell who the payee is, but no more than this in all.
            await ldk.call("pay", bolt11=invoice.bolt11, most_blocks=delta + 6)
            await wait_accepted(alice, invoice.payment_hash)
            self.theirs.append(preimage)


async def mine_until(lab: MixedLab, reached: Callable[[], Awaitable[bool]], most_blocks: int, step: int = 1) -> None:
    """Mine `step` blocks at a time until something is reached."""
    for _ in range(0, most_blocks, step):
        if await reached():
            return
        await lab.mine(step)
    assert await reached(), f"not within {most_blocks} blocks"


async def closing_of(alice: DaemonProcess, channel_id: bytes) -> channels_pb2.GetClosingResponse:
    """How it ends, as soon as the monitor has looked at the block."""

    async def looked() -> channels_pb2.GetClosingResponse | None:
        try:
            return await alice.client.channels.GetClosing(channels_pb2.GetClosingRequest(channel_id=channel_id))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return None

    found = await alice.wait_until(looked)
    assert isinstance(found, channels_pb2.GetClosingResponse)
    return found


@pytest.mark.parametrize(("closer", "anchors"), [("we", True), ("ldk", True), ("ldk", False)])
async def test_force_close_with_htlcs_both_ways(lab: MixedLab, closer: str, anchors: bool) -> None:
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk", auto={"claim": False})
    await lab.fund(alice, CAPACITY_SAT)
    if closer == "we":
        channel = await we_open(lab, alice, ldk, push_msat=400_000_000)
    else:
        channel = await ldk_opens(lab, ldk, alice, push_msat=600_000_000, anchors=anchors)
    pending = Pending()
    await pending.set_up(alice, ldk)
    before_sat = (await alice.balance()).confirmed_sat
    mark = ldk.mark()
    if closer == "we":
        await ldk.call("set", hold_broadcast=True)  # it publishes its own when it hears our error; ours is to be mined
        await alice.close_channel(channel.channel_id, force=True)
    else:
        await ldk.call("force", channel_id=channel.channel_id.hex())
    await lab.mine(1)
    await ldk.call("set", hold_broadcast=False)
    (claimed, given_up), (settled, dropped) = pending.ours, pending.theirs
    await ldk.call("claim", preimage=claimed[2].hex())
    await alice.client.invoices.Settle(invoices_pb2.SettleInvoiceRequest(payment_preimage=settled))

    async def both_claimed() -> bool:
        sent = any(event["ev"] == "PaymentSent" for event in ldk.events[mark:])
        return sent and (await alice.payment(claimed[1])).state == SUCCEEDED

    await mine_until(lab, both_claimed, 12)
    assert (await ldk.wait("PaymentSent", mark))["preimage"] == settled.hex()

    async def both_returned() -> bool:
        failed = any(event["ev"] == "PaymentFailed" for event in ldk.events[mark:])
        return failed and (await alice.payment(given_up[1])).state == FAILED

    await mine_until(lab, both_returned, 150, 6)
    kind = "local" if closer == "we" else "remote_current"

    async def at_rest() -> bool:
        return all(output.status in AT_REST for output in (await closing_of(alice, channel.channel_id)).outputs)

    await mine_until(lab, at_rest, 240, 12)
    closing = await closing_of(alice, channel.channel_id)
    assert closing.kind == kind
    assert len([output for output in closing.outputs if output.kind == "htlc"]) == 4
    gained_sat = (await alice.balance()).confirmed_sat - before_sat
    due_sat = 600_000 - 40_000 + 50_000
    fees_sat = sum(output.fee_sat for output in closing.outputs) + (closing.commitment_fee_sat if closer == "we" else 0)
    assert fees_sat < 40_000
    assert due_sat - fees_sat - 1_000 < gained_sat <= due_sat - fees_sat + 1_000
    payments = await asyncio.gather(*(paying for paying, *_ in pending.ours))
    assert [payment.state for payment in payments] == [SUCCEEDED, FAILED]
    failed = await ldk.wait("PaymentFailed", mark)
    assert failed["payment_hash"] == sha256(dropped).hexdigest()


@pytest.mark.parametrize("anchors", [True, False])
async def test_revoked_state_of_ldk_is_punished(lab: MixedLab, anchors: bool) -> None:
    """An old copy of LDK's monitor publishes its commitment, with an HTLC each way: we take everything."""
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk", auto={"claim": False}, keep_versions=True)
    await lab.fund(alice, CAPACITY_SAT)
    channel = await ldk_opens(lab, ldk, alice, push_msat=300_000_000, anchors=anchors)
    paying, _, preimage = await ldk_holds(alice, ldk, 40_000_000)
    held = os.urandom(32)
    invoice = await hold_invoice(alice, 50_000_000, held)
    await ldk.call("pay", bolt11=invoice.bolt11)
    await wait_accepted(alice, invoice.payment_hash)
    await alice.wait_htlcs(True)
    funding: dict[str, Any] = {"funding_txid": channel.funding_txid.hex(), "vout": channel.funding_vout}
    versions = await ldk.call("versions", funding_txid=funding["funding_txid"])
    await ldk.call("claim", preimage=preimage.hex())
    assert (await paying).state == SUCCEEDED
    await alice.client.invoices.Settle(invoices_pb2.SettleInvoiceRequest(payment_preimage=held))
    await alice.wait_htlcs(False)
    await ldk.call("set", auto={"claim": True})
    await pay_ldk(alice, ldk, 1_000_000)
    before_sat = (await alice.balance()).confirmed_sat

    (old, *_) = await ldk.call("old_commitment", **funding, version=versions[-1])
    await ldk.kill()  # whoever goes back to an old copy has lost what came later
    await lab.rpc.call("sendrawtransaction", old)
    await lab.mine(1)

    async def all_ours() -> bool:
        closing = await closing_of(alice, channel.channel_id)
        return all(output.status in AT_REST for output in closing.outputs)

    await mine_until(lab, all_ours, 12)
    closing = await closing_of(alice, channel.channel_id)
    assert closing.kind == "revoked"
    assert len([output for output in closing.outputs if output.kind == "htlc" and output.taken_by == "local"]) == 2
    gained_sat = (await alice.balance()).confirmed_sat - before_sat
    assert CAPACITY_SAT - 10_000 < gained_sat <= CAPACITY_SAT
