"""A channel from opening to closing: Alice opens it to Bob and pays him; Bob pays her; Bob is killed and comes back;
they go on; they close."""

from __future__ import annotations

import asyncio

from channeld.lab.daemon import DaemonProcess
from channeld.lab.ledger import Ledger
from channeld.lab.stage import BURIAL_BLOCKS, Stage
from channeld.v1 import channels_pb2

FUNDS_SAT = 5_000_000
CAPACITY_SAT = 2_000_000
PAYMENTS_SAT = ((40_000, "coffee for the year"), (250_000, "a bicycle"), (1, "one satoshi"))
BACK_SAT = 120_000
AFTER_CRASH_SAT = 77_000


async def play(stage: Stage) -> Ledger:
    """The whole act. Raises DemoFailed."""
    alice, bob = await stage.cast("alice", "bob")
    await stage.lab.fund(alice, FUNDS_SAT)
    stage.say(f"Alice gets {FUNDS_SAT:,} sat on chain; Bob has nothing")
    ledger = Ledger()
    await ledger.open(alice, bob)
    channel = await _open(stage, alice, bob, ledger)
    for amount_sat, what in PAYMENTS_SAT:
        await stage.pay(alice, bob, amount_sat, what, ledger)
    await stage.pay(bob, alice, BACK_SAT, "change for the bicycle", ledger)
    await _crash(stage, alice, bob, channel)
    await stage.pay(alice, bob, AFTER_CRASH_SAT, "a helmet, after the crash", ledger)
    await stage.close_channels([(alice, bob, channel.channel_id)], ledger)
    stage.say(f"Alice and Bob close together; {BURIAL_BLOCKS} blocks later the closing transaction is buried")
    await ledger.close(alice, bob)
    return ledger


async def _open(stage: Stage, alice: DaemonProcess, bob: DaemonProcess, ledger: Ledger) -> channels_pb2.Channel:
    await alice.connect(bob)
    stage.say("Alice connects to Bob (encrypted and authenticated, BOLT 8)")
    opened = await alice.open_channel(bob, CAPACITY_SAT)
    funding = await ledger.funded(stage.lab, alice, opened)
    stage.say(f"Alice opens a channel with {CAPACITY_SAT:,} sat; the funding transaction is {funding.txid_hex[:20]}…")
    await stage.lab.mine(BURIAL_BLOCKS)
    await asyncio.gather(*(daemon.wait_channel(opened.channel_id) for daemon in (alice, bob)))
    channel_type = ", ".join(name.split(" ")[0] for name in opened.channel_type)
    stage.say(f"{BURIAL_BLOCKS} blocks later both can use it (channel type: {channel_type})")
    return opened


async def _crash(stage: Stage, alice: DaemonProcess, bob: DaemonProcess, channel: channels_pb2.Channel) -> None:
    await stage.kill(bob)
    await bob.start()
    await asyncio.gather(*(daemon.wait_channel(channel.channel_id) for daemon in (alice, bob)))
    stage.say(f"Bob is back as process {bob.process.pid}: same channel, same balances, reestablished")
