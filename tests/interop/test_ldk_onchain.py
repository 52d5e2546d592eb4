"""Channels with LDK that end on chain: closed by either with HTLCs pending both ways; revoked states of either's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import grpc
import pytest
import pytest_asyncio

from channeld.lab import DaemonProcess
from channeld.lab.daemon import LOOK_SECONDS
from channeld.v1 import channels_pb2
from tests.cheating import Cheater
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.steps import (
    CAPACITY_SAT,
    FAILED,
    SUCCEEDED,
    balances_agree,
    ldk_holds,
    ldk_opens,
    pay_ldk,
    set_layer1_feerate,
    settle,
    we_hold,
    we_open,
)
from wallet.bitcoin import Tx

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
AT_REST = {"taken", "theirs", "ours", "none", "uneconomic", "lost"}
ANCHOR_SAT = 330
PATIENCE_SECONDS = 0.5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(lab: MixedLab) -> DaemonProcess:
    (alice,) = await lab.daemons("alice")
    await lab.fund(alice, 4 * CAPACITY_SAT)
    return alice


async def mine_until(lab: MixedLab, reached: Callable[[], Awaitable[bool]], most_blocks: int, step: int = 1) -> None:
    """Mine `step` blocks at a time until something is reached."""
    for _ in range(0, most_blocks, step):
        if await reached():
            return
        if step == 1:
            await _something_to_mine(lab, reached)
        await lab.mine(step)
    assert await reached(), f"not within {most_blocks} blocks"


async def _something_to_mine(lab: MixedLab, reached: Callable[[], Awaitable[bool]]) -> None:
    """What nodes publish because of a block takes them a moment, and so does what they learn from it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await lab.rpc.call("getrawmempool") and not await reached():  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)


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


async def endings(
    lab: MixedLab, alice: DaemonProcess, channels: Sequence[channels_pb2.Channel], most_blocks: int, step: int = 1
) -> list[channels_pb2.GetClosingResponse]:
    """How they ended, once all outputs are where they stay."""

    async def at_rest() -> bool:
        found = [await closing_of(alice, channel.channel_id) for channel in channels]
        return all(output.status in AT_REST for closing in found for output in closing.outputs)

    await mine_until(lab, at_rest, most_blocks, step)
    return [await closing_of(alice, channel.channel_id) for channel in channels]


@dataclass
class Case:
    """A channel between Alice and an LDK node of its own, with four HTLCs: of each side's two, one is claimed on chain,
    the other times out."""

    closer: str
    opener: str
    anchors: bool
    ldk: LdkPeer
    channel: channels_pb2.Channel = field(init=False)
    ours: list[tuple[asyncio.Task[Any], bytes, bytes]] = field(default_factory=list)
    theirs: list[bytes] = field(default_factory=list)
    """Preimages of hold invoices of ours."""
    mark: int = 0

    async def open(self, lab: MixedLab, alice: DaemonProcess) -> None:
        """Usable; 600,000 sat are ours."""
        if self.opener == "we":
            self.channel = await we_open(lab, alice, self.ldk, push_msat=400_000_000)
        else:
            self.channel = await ldk_opens(lab, self.ldk, alice, push_msat=600_000_000, anchors=self.anchors)
        assert self.anchors == any("option_anchors" in name for name in self.channel.channel_type)

    async def offer(self, alice: DaemonProcess) -> None:
        """Until all HTLCs are irrevocably committed."""
        for amount_msat in (40_000_000, 41_000_000):
            self.ours.append(await ldk_holds(alice, self.ldk, amount_msat))
        for amount_msat, delta_blocks in ((50_000_000, 60), (51_000_000, 40)):
            self.theirs.append(await we_hold(alice, self.ldk, amount_msat, delta_blocks))

    async def close(self, alice: DaemonProcess) -> None:
        """Force close; the commitment is in the mempool."""
        self.mark = self.ldk.mark()
        if self.closer == "we":
            # LDK publishes its own when it hears our error; ours is to be mined.
            await self.ldk.call("set", hold_broadcast=True)
            await alice.close_channel(self.channel.channel_id, force=True)
        else:
            await self.ldk.call("force", channel_id=self.channel.channel_id.hex())

    async def claim(self, alice: DaemonProcess) -> None:
        """Each side takes the first of the other's."""
        await self.ldk.call("set", hold_broadcast=False)
        await self.ldk.call("claim", preimage=self.ours[0][2].hex())
        await settle(alice, self.theirs[0])

    async def told(self, alice: DaemonProcess, event: str, state: Any) -> bool:
        """Whether LDK's payment, and ours (the claimed or the other), have this end."""
        payment_hash = self.ours[0 if state == SUCCEEDED else 1][1]
        heard = any(each["ev"] == event for each in self.ldk.events[self.mark :])
        return heard and (await alice.payment(payment_hash)).state == state

    async def check(self, closing: channels_pb2.GetClosingResponse) -> int:
        """All is as it should be; our fees (sat), the commitment's and the anchors if it was we who opened."""
        assert closing.kind == ("local" if self.closer == "we" else "remote_current")
        assert len([output for output in closing.outputs if output.kind == "htlc"]) == 4
        sent = await self.ldk.wait("PaymentSent", self.mark)
        assert sent["preimage"] == self.theirs[0].hex()
        failed = await self.ldk.wait("PaymentFailed", self.mark)
        assert failed["payment_hash"] == sha256(self.theirs[1]).hexdigest()
        payments = await asyncio.gather(*(paying for paying, *_ in self.ours))
        assert [payment.state for payment in payments] == [SUCCEEDED, FAILED]
        fees_sat = sum(output.fee_sat for output in closing.outputs)
        if self.opener == "we":
            fees_sat += closing.commitment_fee_sat + (2 * ANCHOR_SAT if self.anchors else 0)
        return fees_sat


@pytest.mark.timeout(300)
async def test_force_closes_with_htlcs_both_ways(lab: MixedLab, alice: DaemonProcess) -> None:
    """Four channels at once: closed by either, with anchors and without, opened by either."""
    hold = {"claim": False}
    plain = {"anchors": False}  # what LDK offers decides what we open
    async with (
        lab.ldks("anchors1", "anchors2", auto=hold) as with_anchors,
        lab.ldks("plain1", "plain2", auto=hold, channels=plain) as without,
    ):
        kinds = [("we", "ldk", True), ("ldk", "we", True), ("we", "we", False), ("ldk", "ldk", False)]
        cases = [Case(*kind, ldk) for kind, ldk in zip(kinds, [*with_anchors, *without], strict=True)]
        await _force_closes(lab, alice, cases)


LDK_FEERATE_PER_KW = 253
"""What these LDKs always pay. Without anchors we take no channel that pays less than half of what layer 1 asks."""


async def _force_closes(lab: MixedLab, alice: DaemonProcess, cases: list[Case]) -> None:
    await set_layer1_feerate(lab, LDK_FEERATE_PER_KW)
    for case in cases:
        await case.open(lab, alice)
    for case in cases:  # without a block in between: LDK gives back in time what it does not claim
        await case.offer(alice)
    before_sat = (await alice.balance()).confirmed_sat
    for case in cases:
        await case.close(alice)
    await lab.mine(1)
    for case in cases:
        await case.claim(alice)

    async def all_claimed() -> bool:
        return all([await case.told(alice, "PaymentSent", SUCCEEDED) for case in cases])

    async def all_returned() -> bool:
        return all([await case.told(alice, "PaymentFailed", FAILED) for case in cases])

    await mine_until(lab, all_claimed, 12)
    await mine_until(lab, all_returned, 150, 6)
    await asyncio.gather(*(case.ldk.kill() for case in cases))  # LDK has its share; what is left waits for our delays
    closings = await endings(lab, alice, [case.channel for case in cases], 240, 12)
    fees_sat = sum([await case.check(closing) for case, closing in zip(cases, closings, strict=True)])
    gained_sat = (await alice.balance()).confirmed_sat - before_sat
    due_sat = len(cases) * (600_000 - 40_000 + 50_000)
    assert fees_sat < len(cases) * 40_000
    assert due_sat - fees_sat - 1_000 < gained_sat <= due_sat - fees_sat + 1_000


# --- revoked states of LDK's

KEEPING: dict[str, Any] = {"auto": {"claim": False}, "keep_versions": True}


@dataclass
class Old:
    """A channel with an LDK node that will go back to a state with an HTLC each way; it knows the preimage of ours."""

    ldk: LdkPeer
    channel: channels_pb2.Channel
    version: int

    async def cheat(self) -> str:
        """An old copy of LDK's monitor takes over, and publishes its commitment; its txid."""
        mark = self.ldk.mark()
        txid, vout = self.channel.funding_txid.hex(), self.channel.funding_vout
        await self.ldk.call("cheat", funding_txid=txid, vout=vout, version=self.version)
        published = await self.ldk.wait("broadcast", mark)
        return Tx.parse(bytes.fromhex(published["txs"][0])).txid()[::-1].hex()


async def old_states(lab: MixedLab, alice: DaemonProcess, peers: Sequence[LdkPeer]) -> list[Old]:
    """With anchors and without; the HTLCs are settled since."""
    found = []
    await set_layer1_feerate(lab, LDK_FEERATE_PER_KW)
    for anchors, ldk in zip((True, False), peers, strict=True):
        channel = await ldk_opens(lab, ldk, alice, push_msat=300_000_000, anchors=anchors)
        paying, _, preimage = await ldk_holds(alice, ldk, 40_000_000)
        held = await we_hold(alice, ldk, 50_000_000)
        funding_txid = channel.funding_txid.hex()
        versions = await ldk.call("versions", funding_txid=funding_txid)
        await ldk.call("claim", preimage=preimage.hex())  # one version later it knows the preimage, and nothing else
        assert (await paying).state == SUCCEEDED
        await settle(alice, held)
        await balances_agree(alice, ldk, channel.channel_id)
        await ldk.call("set", auto={"claim": True})
        await pay_ldk(alice, ldk, 1_000_000)
        later = await ldk.call("versions", funding_txid=funding_txid)
        assert versions[-1] + 1 in later[:-1]
        found.append(Old(ldk, channel, versions[-1] + 1))
    return found


def taken(closing: channels_pb2.GetClosingResponse, kind: str) -> int:
    """How many of its outputs of a kind we took."""
    return len([output for output in closing.outputs if (output.kind, output.taken_by) == (kind, "local")])


async def punished(lab: MixedLab, alice: DaemonProcess, cases: Sequence[Old], most_blocks: int) -> list[list[int]]:
    """The old states were punished: of each, how many outputs of every kind Alice took."""
    found = await endings(lab, alice, [case.channel for case in cases], most_blocks)
    assert all(closing.kind == "revoked" for closing in found)
    return [[taken(closing, kind) for kind in ("to_local", "htlc", "htlc_tx")] for closing in found]


def assert_all_of(cases: Sequence[Old], gained_sat: int) -> None:
    """Alice has everything that was in the channels, but for fees."""
    assert len(cases) * (CAPACITY_SAT - 10_000) < gained_sat <= len(cases) * CAPACITY_SAT


async def test_revoked_states_of_ldk_are_punished(lab: MixedLab, alice: DaemonProcess) -> None:
    """We are there: every output of the old commitment is ours that is worth it, and without anchors, where LDK's HTLC
    transaction comes with it in the same block, of that, too."""
    async with lab.ldks("old1", "old2", **KEEPING) as peers:
        cases = await old_states(lab, alice, peers)
        before_sat = (await alice.balance()).confirmed_sat
        for case in cases:
            await case.cheat()
            await case.ldk.kill()
        await lab.mine(1)
        assert await punished(lab, alice, cases, 12) == [[1, 2, 0], [1, 1, 1]]
        assert_all_of(cases, (await alice.balance()).confirmed_sat - before_sat)


async def test_revoked_second_stages_of_ldk_are_punished(lab: MixedLab, alice: DaemonProcess) -> None:
    """While we are away LDK's HTLC transactions are mined, too, for HTLCs either way; back in time, we take theirs."""
    async with lab.ldks("late1", "late2", **KEEPING) as peers:
        cases = await old_states(lab, alice, peers)
        before_sat = (await alice.balance()).confirmed_sat
        await alice.kill()
        commitments = [await case.cheat() for case in cases]

        async def second_stages() -> bool:
            return all([not await _unspent_htlcs(lab, txid) for txid in commitments])

        await lab.mine(1)
        await mine_until(lab, second_stages, 60, 3)
        await asyncio.gather(*(case.ldk.kill() for case in cases))
        await alice.start()
        assert await punished(lab, alice, cases, 24) == [[1, 0, 2], [1, 0, 2]]
        assert_all_of(cases, (await alice.balance()).confirmed_sat - before_sat)


async def _unspent_htlcs(lab: MixedLab, txid: str) -> int:
    """How many of a commitment's outputs are HTLCs that no transaction in a block spends."""
    values_sat = [
        round(output["value"] * 10**8)
        for vout in range(6)
        if (output := await lab.rpc.call("gettxout", txid, vout, False)) is not None
    ]
    return len([value for value in values_sat if value in (40_000, 50_000)])


# --- revoked states of ours


async def test_revoked_states_of_ours_are_punished(lab: MixedLab) -> None:
    """A daemon that cheats goes back to a state with an HTLC each way: LDK finds, and takes, every output."""
    cheater = Cheater(lab)
    await cheater.daemon.start()
    hold = {"claim": False}
    async with (
        lab.ldks("judge1", auto=hold) as with_anchors,
        lab.ldks("judge2", auto=hold, channels={"anchors": False}) as without,
    ):
        peers = [*with_anchors, *without]
        opened = [await _cheated(lab, cheater, ldk) for ldk in peers]
        published = [await _go_back(cheater, channel) for channel in opened]
        await cheater.daemon.kill()
        marks = [ldk.mark() for ldk in peers]
        await lab.rpc.call("generateblock", await lab.rpc.call("getnewaddress"), published)
        for ldk, mark in zip(peers, marks, strict=True):
            await ldk.call("sync")
            await ldk.wait("broadcast", mark)
        await lab.mine(6)
        for ldk, mark in zip(peers, marks, strict=True):
            await ldk.wait("SpendableOutputs", mark, lambda event: event["swept"])
        await lab.mine(1)  # also its own output without a delay is in its wallet then
        for raw in published:
            commitment = Tx.parse(bytes.fromhex(raw))
            txid = commitment.txid()[::-1].hex()
            for vout, output in enumerate(commitment.outputs):
                left = await lab.rpc.call("gettxout", txid, vout, False) is not None
                assert left == (output.value_sat == ANCHOR_SAT)


async def _go_back(cheater: Cheater, channel: channels_pb2.Channel) -> str:
    """Our daemon believes in the state with an HTLC each way; that commitment."""
    channel_id = channel.channel_id.hex()
    states = await cheater.ask("states", channel_id=channel_id)
    old = max(state["number"] for state in states if (state["incoming"], state["outgoing"]) == (1, 1))
    assert old < states[-1]["number"]
    return str(await cheater.ask("go back", channel_id=channel_id, number=old))


async def _cheated(lab: MixedLab, cheater: Cheater, ldk: LdkPeer) -> channels_pb2.Channel:
    """A channel with an HTLC each way that are settled since."""
    channel = await we_open(lab, cheater.daemon, ldk, push_msat=300_000_000)
    paying, _, preimage = await ldk_holds(cheater.daemon, ldk, 40_000_000)
    held = await we_hold(cheater.daemon, ldk, 50_000_000)
    await ldk.call("claim", preimage=preimage.hex())
    assert (await paying).state == SUCCEEDED
    await settle(cheater.daemon, held)
    await balances_agree(cheater.daemon, ldk, channel.channel_id)
    await ldk.call("set", auto={"claim": True})
    await pay_ldk(cheater.daemon, ldk, 1_000_000)
    return channel
