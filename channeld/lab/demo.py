"""`make demo`: a channel from opening to closing, between two daemons that are processes of their own.

Alice opens a channel to Bob and pays him; Bob pays her; Bob is killed and comes back; they go on; they close; and every
satoshi is accounted for. Exit status 1 and a plain sentence if one is missing.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path

import grpc
from rich.console import Console

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.lab.ledger import Account, Ledger, confirmed_sat, fee_sat, fetch_tx, paid_by
from channeld.lab.processes import ProcessEnded
from channeld.v1 import channels_pb2, payments_pb2

FUNDS_SAT = 5_000_000
CAPACITY_SAT = 2_000_000
PAYMENTS_SAT = ((40_000, "coffee for the year"), (250_000, "a bicycle"), (1, "one satoshi"))
BACK_SAT = 120_000
AFTER_CRASH_SAT = 77_000
BURIAL_BLOCKS = 6


class DemoFailed(Exception):
    """The demonstration went wrong; the text is a sentence."""


class Demo:
    """One run: what happens, told as it happens."""

    def __init__(self, console: Console, lab: Lab) -> None:
        self._console = console
        self._lab = lab
        self._started = time.monotonic()

    def say(self, sentence: str) -> None:
        """One step, with the seconds since the start."""
        self._console.print(
            f"[dim]{time.monotonic() - self._started:5.1f} s[/]  {sentence}", highlight=False, soft_wrap=True
        )

    async def run(self) -> Ledger:
        """The whole story. Raises DemoFailed."""
        alice, bob = await self._start()
        ledger = Ledger(
            Account("Alice", await confirmed_sat(alice)),
            Account("Bob", await confirmed_sat(bob)),
        )
        channel = await self._open(alice, bob, ledger)
        for amount_sat, what in PAYMENTS_SAT:
            await self._pay(alice, bob, amount_sat, what)
            ledger.payment(ledger.opener, amount_sat)
        await self._pay(bob, alice, BACK_SAT, "change for the bicycle")
        ledger.payment(ledger.other, BACK_SAT)
        await self._crash(alice, bob, channel)
        await self._pay(alice, bob, AFTER_CRASH_SAT, "a helmet, after the crash")
        ledger.payment(ledger.opener, AFTER_CRASH_SAT)
        await self._close(alice, bob, channel, ledger)
        return ledger

    async def _start(self) -> tuple[DaemonProcess, DaemonProcess]:
        height = await self._lab.height()
        self.say(f"[bold]Layer 1[/] runs: regtestd, process {self._lab.layer1.pid}, {height} blocks")
        alice, bob = await self._lab.daemons("alice", "bob")
        for daemon in (alice, bob):
            node_id = daemon.node_id.hex()
            self.say(
                f"[bold]{daemon.name.title()}[/] runs: channeld, process {daemon.process.pid}, node {node_id[:20]}…"
            )
        await self._lab.fund(alice, FUNDS_SAT)
        self.say(f"Alice gets {FUNDS_SAT:,} sat on chain; Bob has nothing")
        return alice, bob

    async def _open(self, alice: DaemonProcess, bob: DaemonProcess, ledger: Ledger) -> channels_pb2.Channel:
        await alice.connect(bob)
        self.say("Alice connects to Bob (encrypted and authenticated, BOLT 8)")
        opened = await alice.open_channel(bob, CAPACITY_SAT)
        funding = await fetch_tx(self._lab, opened.funding_txid)
        ledger.opener.in_channel_at_open_sat = CAPACITY_SAT
        ledger.opener.fees_sat["funding transaction"] = await fee_sat(self._lab, funding)
        self.say(
            f"Alice opens a channel with {CAPACITY_SAT:,} sat; the funding transaction is {funding.txid_hex[:20]}…"
        )
        await self._lab.mine(BURIAL_BLOCKS)
        await asyncio.gather(*(daemon.wait_channel(opened.channel_id) for daemon in (alice, bob)))
        channel_type = ", ".join(name.split(" ")[0] for name in opened.channel_type)
        self.say(f"{BURIAL_BLOCKS} blocks later both can use it (channel type: {channel_type})")
        return opened

    async def _pay(self, payer: DaemonProcess, payee: DaemonProcess, amount_sat: int, what: str) -> None:
        invoice = await payee.invoice(amount_sat * 1000, what)
        began = time.perf_counter()
        payment = await payer.pay(invoice.bolt11)
        took_ms = (time.perf_counter() - began) * 1000
        if payment.state != payments_pb2.PAYMENT_STATE_SUCCEEDED:
            raise DemoFailed(f"{payer.name} could not pay {amount_sat} sat to {payee.name}: {payment.failure}")
        self.say(
            f"{payer.name.title()} pays {payee.name.title()} [bold]{amount_sat:,} sat[/] for {what}: "
            f"[green]settled[/] in {took_ms:.0f} ms, preimage {payment.payment_preimage.hex()[:16]}…"
        )

    async def _crash(self, alice: DaemonProcess, bob: DaemonProcess, channel: channels_pb2.Channel) -> None:
        pid = bob.process.pid
        await bob.kill()
        self.say(f"[bold red]kill -9 {pid}[/]: Bob's daemon is dead")
        await bob.start()
        await asyncio.gather(*(daemon.wait_channel(channel.channel_id) for daemon in (alice, bob)))
        self.say(f"Bob is back as process {bob.process.pid}: same channel, same balances, reestablished")

    async def _close(
        self, alice: DaemonProcess, bob: DaemonProcess, channel: channels_pb2.Channel, ledger: Ledger
    ) -> None:
        for account, daemon in zip(ledger.accounts, (alice, bob), strict=True):
            (view,) = await daemon.channels()
            account.in_channel_at_close_sat = int(view.local_msat) // 1000
        await alice.close_channel(channel.channel_id)
        self.say("Alice and Bob close together")
        await self._lab.mine(BURIAL_BLOCKS)
        await asyncio.gather(*(daemon.wait_closed(channel.channel_id) for daemon in (alice, bob)))
        closed = next(c for c in await alice.channels(include_closed=True) if c.channel_id == channel.channel_id)
        closing = await fetch_tx(self._lab, closed.closing_txid)
        self.say(f"{BURIAL_BLOCKS} blocks later the closing transaction {closing.txid_hex[:20]}… is buried")
        for account, daemon in zip(ledger.accounts, (alice, bob), strict=True):
            account.from_closing_sat = await paid_by(closing, daemon)
            account.after_sat = await confirmed_sat(daemon)
        self._book_closing_fee(ledger, await fee_sat(self._lab, closing))

    @staticmethod
    def _book_closing_fee(ledger: Ledger, closing_fee_sat: int) -> None:
        """The fee goes to whoever got less than its share; what the chain took must be what the two are short of."""
        for account in ledger.accounts:
            short_sat = account.in_channel_at_close_sat - account.from_closing_sat
            if short_sat:
                account.fees_sat["closing transaction"] = short_sat
        booked_sat = sum(account.fees_sat.get("closing transaction", 0) for account in ledger.accounts)
        if booked_sat != closing_fee_sat:
            raise DemoFailed(
                f"the closing transaction pays {closing_fee_sat} sat, but the two are short of {booked_sat}"
            )


async def _run(console: Console) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="channeld-demo-") as folder:
        async with Lab(Path(folder)) as lab:
            demo = Demo(console, lab)
            ledger = await demo.run()
    console.print(ledger.table())
    faults = ledger.faults()
    for sentence in faults:
        console.print(f"[bold red]{sentence}[/]")
    if not faults:
        console.print("[green]Nothing is missing, nothing is left running.[/]")
    return 1 if faults else 0


def main() -> int:
    """The exit status: 0 if every satoshi is where it must be."""
    console = Console()
    try:
        return asyncio.run(_run(console))
    except (DemoFailed, ProcessEnded) as error:
        console.print(f"[bold red]The demonstration failed:[/] {error}", highlight=False)
    except grpc.aio.AioRpcError as error:
        console.print(f"[bold red]The demonstration failed:[/] {error.details()}", highlight=False)
    except TimeoutError:
        console.print("[bold red]The demonstration failed:[/] a step took too long", highlight=False)
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; nothing is left running")
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
