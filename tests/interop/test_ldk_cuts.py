"""The connection with LDK breaks at every message of the commitment dance, either way: everything arrives once."""

from __future__ import annotations

import asyncio
import json

import pytest

from channeld.lab import DaemonProcess
from channeld.v1 import payments_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.steps import (
    balances_agree,
    closed_on_chain,
    connect,
    ldk_holds,
    ldk_opens,
    ldk_pays,
    pay_ldk,
    we_open,
)

pytestmark = pytest.mark.interop
READY, SHUTDOWN, CLOSING_SIGNED = 36, 38, 39
ADD, FULFILL, FAIL, SIGNED, REVOKE, FEE, REESTABLISH = 128, 130, 131, 132, 133, 134, 136
PAID_BY_US = [
    ("out", ADD, 1),
    ("out", SIGNED, 1),
    ("in", REVOKE, 1),
    ("in", SIGNED, 1),
    ("out", REVOKE, 1),
    ("in", FULFILL, 1),
    ("in", SIGNED, 2),
    ("out", REVOKE, 2),
    ("out", SIGNED, 2),
    ("in", REVOKE, 2),
]
PAID_BY_LDK = [("in" if way == "out" else "out", kind, nth) for way, kind, nth in PAID_BY_US]
"""The same dance with the parts exchanged."""


class Knife:
    """Our daemon, whose connection can be cut at a message, and LDK."""

    def __init__(self, lab: MixedLab, ldk: LdkPeer) -> None:
        self._file = lab.directory / "cut.json"
        self.ldk = ldk
        self.daemon = lab.add_daemon("alice", env={"CUT_FILE": str(self._file)}, module="tests.interop.cutting_daemon")

    def at(self, way: str, kind: int, nth: int = 1) -> None:
        """Cut at the `nth` message of a kind from now on; that message is lost."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps({"way": way, "type": kind, "nth": nth}))
        draft.rename(self._file)

    async def made(self) -> None:
        """Until the cut was made; an event of our daemon's follows."""

        async def cut() -> bool:
            return not self._file.exists()

        await self.daemon.wait_until(cut)

    async def mend(self) -> None:
        """Connects again."""
        await connect(self.daemon, self.ldk)

    async def fell(self) -> None:
        """Until the cut was made; connects again."""
        await self.made()
        await self.mend()


async def test_cut_at_every_message(lab: MixedLab) -> None:
    ldk = await lab.ldk("ldk")
    knife = Knife(lab, ldk)
    alice = knife.daemon
    await alice.start()
    await lab.wait_synced()
    channel = await we_open(lab, alice, ldk, push_msat=400_000_000)
    expected_msat = 600_000_000
    for number, cut in enumerate(PAID_BY_US):
        knife.at(*cut)
        amount_msat = 3_000_000 + number
        await asyncio.gather(knife.fell(), pay_ldk(alice, ldk, amount_msat))
        expected_msat -= amount_msat
        await alice.wait_channel(channel.channel_id)
        # Also at rest: the next cut is not to meet the end of this dance.
        assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat, cut
    for number, cut in enumerate(PAID_BY_LDK):
        knife.at(*cut)
        amount_msat = 2_000_000 + number
        await asyncio.gather(knife.fell(), ldk_pays(ldk, alice, amount_msat))
        expected_msat += amount_msat
        await alice.wait_channel(channel.channel_id)
        # Also at rest: the next cut is not to meet the end of this dance.
        assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat, cut
    await _refusal_is_lost(knife)
    await _fee_is_lost(lab, knife)
    await _reestablish_is_lost(knife)
    await pay_ldk(alice, ldk, 1_000_000)
    assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat - 1_000_000
    await _closing_is_cut(lab, knife, channel.channel_id)


async def _refusal_is_lost(knife: Knife) -> None:
    """`update_fail_htlc` of LDK's does not arrive, then it does."""
    await knife.ldk.call("set", auto={"claim": False})
    paying, payment_hash, _ = await ldk_holds(knife.daemon, knife.ldk, 5_000_000)
    knife.at("in", FAIL)
    await knife.ldk.call("fail", payment_hash=payment_hash.hex())
    await knife.fell()
    assert (await paying).state == payments_pb2.PAYMENT_STATE_FAILED
    await knife.ldk.call("set", auto={"claim": True})


async def _fee_is_lost(lab: MixedLab, knife: Knife) -> None:
    """Our `update_fee` does not arrive: it is made again, and LDK signs for it."""
    knife.at("out", FEE)
    await set_layer1_feerate(lab, 1000)
    await lab.mine(1)
    await knife.fell()
    await wait_feerate(knife.daemon, knife.ldk, 1000)


async def set_layer1_feerate(lab: MixedLab, per_kw: int) -> None:
    """What layer 1 says that a transaction costs, in sat per 1000 weight units."""
    await lab.rpc.call("setestimatedfee", f"{per_kw * 4 / 1e8:.8f}")


async def wait_feerate(alice: DaemonProcess, ldk: LdkPeer, per_kw: int) -> None:
    """Until the channel's commitments pay this on both sides."""
    async with asyncio.timeout(30):
        while True:  # no event tells; each round asks both
            (ours,) = await alice.channels()
            (theirs,) = await ldk.call("channels")
            if ours.feerate_per_kw == theirs["feerate_per_kw"] == per_kw:
                return


async def _reestablish_is_lost(knife: Knife) -> None:
    """Even `channel_reestablish` is lost, once each way."""
    for way in ("in", "out"):
        knife.at(way, REESTABLISH)
        await knife.ldk.call("disconnect", node_id=knife.daemon.node_id.hex())
        await knife.mend()
        await knife.fell()
    (channel,) = await knife.daemon.channels()
    await knife.daemon.wait_channel(channel.channel_id)


async def _closing_is_cut(lab: MixedLab, knife: Knife, channel_id: bytes) -> None:
    """The cooperative close begins again as often as it is cut (BOLT 2, "Closing Negotiation")."""
    mark = knife.ldk.mark()
    knife.at("out", SHUTDOWN)
    await asyncio.gather(knife.daemon.close_channel(channel_id), knife.made())
    for way, kind in (("in", SHUTDOWN), ("out", CLOSING_SIGNED), ("in", CLOSING_SIGNED)):
        knife.at(way, kind)  # before the connection is back: the whole close takes no time
        await knife.mend()
        await knife.made()
    await knife.mend()
    await closed_on_chain(lab, knife.daemon, knife.ldk, channel_id, mark)


async def test_ldk_opens_and_channel_ready_is_lost(lab: MixedLab) -> None:
    """`channel_ready` is lost both ways; then LDK, the opener, changes the feerate, and that is cut, too."""
    ldk = await lab.ldk("ldk")
    knife = Knife(lab, ldk)
    await knife.daemon.start()
    knife.at("in", READY)
    opening = asyncio.ensure_future(ldk_opens(lab, ldk, knife.daemon, push_msat=300_000_000))
    await knife.fell()
    channel = await opening
    cuts = [("in", FEE), ("in", SIGNED), ("out", REVOKE), ("out", SIGNED), ("in", REVOKE)]
    for per_kw, cut in zip(range(1000, 6000, 1000), cuts, strict=True):  # LDK follows small steps upwards only
        knife.at(*cut)
        await ldk.call("set", fees={"normal": per_kw})
        await ldk.call("tick")
        await knife.fell()
        await knife.daemon.wait_channel(channel.channel_id)
        await ldk.call("tick")
        await wait_feerate(knife.daemon, ldk, per_kw)
    await pay_ldk(knife.daemon, ldk, 10_000_000)
    await ldk_pays(ldk, knife.daemon, 20_000_000)
    assert await balances_agree(knife.daemon, ldk, channel.channel_id) == 310_000_000
