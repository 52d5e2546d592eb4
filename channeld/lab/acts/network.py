"""A network: five nodes in a diamond with a tail. A payment too large for one channel goes two ways, a node is killed
in the middle of another, those between earn fees, and all channels are closed.

    Bob
   /   \\
Alice   Dave ── Erin
   \\   /
   Carol
"""

from __future__ import annotations

import asyncio
import time

from channeld.lab.daemon import DaemonProcess
from channeld.lab.ledger import EARNED, Ledger
from channeld.lab.stage import BURIAL_BLOCKS, DemoFailed, Stage
from channeld.v1 import channels_pb2, payments_pb2

COINS_SAT = {"alice": 700_000, "bob": 700_000, "carol": 700_000, "dave": 1_200_000}
"""What they get on chain before; Alice has some from before, too."""
CAPACITY_SAT = 500_000
TAIL_CAPACITY_SAT = 950_000
TWO_WAYS_SAT = 700_000
"""More than one way of the diamond can carry."""
MIDDLE_SAT = 120_000
BACK_SAT = 200_000
POLICIES = {"bob": (1000, 50), "carol": (500, 200), "dave": (0, 100)}
"""(base fee in msat, millionths): what those between ask."""

_Opened = tuple[DaemonProcess, DaemonProcess, channels_pb2.Channel]


async def play(stage: Stage) -> Ledger:
    """The whole act. Raises DemoFailed."""
    alice, bob, carol, dave, erin = cast = await stage.cast("alice", "bob", "carol", "dave", "erin")
    await stage.lab.fund_all({daemon: COINS_SAT[daemon.name] for daemon in cast if daemon.name in COINS_SAT})
    ledger = Ledger()
    await ledger.open(*cast)
    channels = await _open(
        stage,
        ledger,
        [
            (alice, bob, CAPACITY_SAT),
            (alice, carol, CAPACITY_SAT),
            (bob, dave, CAPACITY_SAT),
            (carol, dave, CAPACITY_SAT),
            (dave, erin, TAIL_CAPACITY_SAT),
        ],
    )
    await stage.pay(alice, erin, TWO_WAYS_SAT, "a used car", ledger)
    await _tell_ways(stage, [bob, carol])
    await _kill_in_the_middle(stage, ledger, alice, erin, [bob, carol], dave, channels)
    await stage.pay(erin, alice, BACK_SAT, "the car's old tyres", ledger)
    await _tell_fees(stage, ledger, [bob, carol, dave])
    await stage.close_channels([(one, other, channel.channel_id) for one, other, channel in channels], ledger)
    stage.say(f"All channels are closed together; {BURIAL_BLOCKS} blocks later that is buried")
    await ledger.close(*cast)
    return ledger


async def _open(stage: Stage, ledger: Ledger, wanted: list[tuple[DaemonProcess, DaemonProcess, int]]) -> list[_Opened]:
    opened: list[_Opened] = []
    for one, other, capacity_sat in wanted:
        await one.connect(other)
        channel = await one.open_channel(other, capacity_sat)
        await ledger.funded(stage.lab, one, channel)
        opened.append((one, other, channel))
    stage.say(f"Alice, Bob, Carol and Dave open channels: {' '.join(f'{a.name}─{b.name}' for a, b, _ in opened)}")
    await stage.lab.mine(BURIAL_BLOCKS)
    await _wait_usable(opened)
    for daemon in {one.name: one for one, _, _ in opened}.values():
        if daemon.name in POLICIES:
            base_msat, proportional = POLICIES[daemon.name]
            request = channels_pb2.SetPolicyRequest(fee_base_msat=base_msat, fee_proportional_millionths=proportional)
            await daemon.client.channels.SetPolicy(request)
    await stage.lab.wait_graph(*(channel for _, _, channel in opened))
    stage.say("Gossip has told everybody of all five channels, and of what each node asks for forwarding (BOLT 7)")
    return opened


async def _wait_usable(channels: list[_Opened]) -> None:
    await asyncio.gather(
        *(daemon.wait_channel(channel.channel_id) for one, other, channel in channels for daemon in (one, other))
    )


async def _tell_ways(stage: Stage, between: list[DaemonProcess]) -> None:
    """How the payment that was made last was split."""
    await _at_rest(between)
    for daemon in between:
        for forward in await daemon.forwards():
            stage.say(
                f"  a part of {forward.outgoing_msat / 1000:,.3f} sat went through {daemon.name.title()}, "
                f"who earned {forward.fee_msat:,} msat"
            )


async def _kill_in_the_middle(
    stage: Stage,
    ledger: Ledger,
    payer: DaemonProcess,
    payee: DaemonProcess,
    between: list[DaemonProcess],
    last: DaemonProcess,
    channels: list[_Opened],
) -> None:
    """The payee hangs, so that the payment is under way for as long as it takes to kill the node that carries it."""
    invoice = await payee.invoice(MIDDLE_SAT * 1000, "a paint job")
    payee.process.freeze()
    began = time.perf_counter()
    paying = asyncio.create_task(payer.pay(invoice.bolt11))
    try:
        await last.wait_htlcs(True)
        victim = await _carrier(between)
        stage.say(
            f"Alice pays Erin {MIDDLE_SAT:,} sat for a paint job; Erin's machine hangs, the money is under way "
            f"through {victim.name.title()}"
        )
        await stage.kill(victim)
    finally:
        payee.process.thaw()
    stage.say(f"Erin's machine goes on, and {victim.name.title()} is started again")
    await victim.start()
    await _wait_usable([opened for opened in channels if victim in opened[:2]])
    await paying
    payment = await payer.wait_payment(invoice.payment_hash)
    took_seconds = time.perf_counter() - began
    received_msat = int((await payee.received(invoice.payment_hash)).received_msat)
    if payment.state == payments_pb2.PAYMENT_STATE_SUCCEEDED:
        if received_msat != MIDDLE_SAT * 1000:
            raise DemoFailed(f"Alice's payment succeeded, but Erin has {received_msat} msat of it")
        ledger.payment(payer, payee, int(payment.amount_msat), int(payment.fee_msat))
        stage.say(f"The payment [green]arrived[/] all the same, after {took_seconds:.1f} s; Alice has the preimage")
    else:
        if received_msat:
            raise DemoFailed(f"Alice's payment failed, but Erin has {received_msat} msat of it")
        stage.say(f"The payment [yellow]failed cleanly[/]: Alice has her money, Erin got nothing ({payment.failure})")
    await _at_rest([payer, payee, last, *between])


async def _at_rest(daemons: list[DaemonProcess]) -> None:
    """Until no HTLC is left: a payment has succeeded when the first preimage comes, and its other parts take a moment
    more."""
    await asyncio.gather(*(daemon.wait_htlcs(False) for daemon in daemons))


async def _carrier(between: list[DaemonProcess]) -> DaemonProcess:
    """Who has HTLCs in its channels."""
    for daemon in between:
        if any(channel.htlcs for channel in await daemon.channels()):
            return daemon
    raise DemoFailed("a payment is under way, but through nobody")


async def _tell_fees(stage: Stage, ledger: Ledger, between: list[DaemonProcess]) -> None:
    """What each node earned, as it says itself; booked."""
    await _at_rest(between)
    for daemon in between:
        forwards = await daemon.forwards()
        earned_msat = sum(int(forward.fee_msat) for forward in forwards)
        ledger[daemon].book(EARNED, earned_msat)
        stage.say(
            f"{daemon.name.title()} forwarded {len(forwards)} parts and earned [bold]{earned_msat / 1000:,.3f} sat[/]"
        )
