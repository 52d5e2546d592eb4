"""What the acts of the demonstration share: the lab, who is on stage, how the story is told, and its verbs."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console
from rich.rule import Rule
from rich.segment import Segment, Segments
from rich.table import Table

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.lab.ledger import Ledger, fee_sat, fetch_tx, paid_by
from channeld.v1 import channels_pb2, payments_pb2

BURIAL_BLOCKS = 6
MAX_WIDTH = 1000


class DemoFailed(Exception):
    """The demonstration went wrong; the text is a sentence."""


class Stage:
    """One run: what happens, told as it happens."""

    def __init__(self, console: Console, lab: Lab) -> None:
        self.console = console
        self.lab = lab
        self._cast: dict[str, DaemonProcess] = {}
        self._started = time.monotonic()

    # --- telling

    def say(self, sentence: str) -> None:
        """One step, with the seconds since the start."""
        self.console.print(
            f"[dim]{time.monotonic() - self._started:5.1f} s[/]  {sentence}", highlight=False, soft_wrap=True
        )

    def title(self, title: str) -> None:
        """A new act."""
        self.console.print()
        self.console.print(Rule(f"[bold]{title}[/]", align="left", characters="─"))

    def accounts(self, table: Table) -> None:
        """A table as wide as it is: no amount is ever cut, however narrow the terminal."""
        options = self.console.options.update(max_width=MAX_WIDTH)
        width = max(self.console.width, self.console.measure(table, options=options).maximum)
        for line in self.console.render_lines(table, options.update(width=width), pad=False):
            self.console.print(Segments([*line, Segment.line()]), soft_wrap=True)

    # --- the cast

    async def cast(self, *names: str) -> list[DaemonProcess]:
        """The daemons of these names; those that are not on stage yet are started, together."""
        missing = [name for name in names if name not in self._cast]
        for daemon in await self.lab.daemons(*missing):
            self._cast[daemon.name] = daemon
            node_id = daemon.node_id.hex()
            self.say(f"{called(daemon)} runs: channeld, process {daemon.process.pid}, node {node_id[:20]}…")
        return [self._cast[name] for name in names]

    # --- verbs

    async def pay(
        self, payer: DaemonProcess, payee: DaemonProcess, amount_sat: int, what: str, ledger: Ledger
    ) -> payments_pb2.Payment:
        """A payment that must succeed, told and booked. Raises DemoFailed."""
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
        ledger.payment(payer, payee, int(payment.amount_msat), int(payment.fee_msat))
        return payment

    async def kill(self, daemon: DaemonProcess) -> None:
        """kill -9, told."""
        pid = daemon.process.pid
        await daemon.kill()
        self.say(f"[bold red]kill -9 {pid}[/]: {daemon.name.title()}'s daemon is dead")

    async def close_channels(self, channels: list[tuple[DaemonProcess, DaemonProcess, bytes]], ledger: Ledger) -> None:
        """Closes channels (who closes, with whom, channel_id) together and buries that, booked."""
        shares = [await _shares(ends, channel_id) for *ends, channel_id in channels]
        for closer, _, channel_id in channels:
            await closer.close_channel(channel_id)
        await self.lab.mine(BURIAL_BLOCKS)
        for (closer, other, channel_id), share in zip(channels, shares, strict=True):
            await asyncio.gather(closer.wait_closed(channel_id), other.wait_closed(channel_id))
            view = next(c for c in await closer.channels(include_closed=True) if c.channel_id == channel_id)
            closing = await fetch_tx(self.lab, view.closing_txid)
            paid = {daemon: await paid_by(closing, daemon) for daemon in (closer, other)}
            ledger.closed(share, paid, await fee_sat(self.lab, closing))


def called(daemon: DaemonProcess) -> str:
    """Its name, as it begins a sentence."""
    return f"[bold]{daemon.name.title()}[/]"


async def _shares(ends: list[DaemonProcess], channel_id: bytes) -> dict[DaemonProcess, int]:
    """What each has in a channel, in msat."""
    return {daemon: int((await find_channel(daemon, channel_id)).local_msat) for daemon in ends}


async def find_channel(daemon: DaemonProcess, channel_id: bytes) -> channels_pb2.Channel:
    """A channel that is not over yet."""
    return next(channel for channel in await daemon.channels() if channel.channel_id == channel_id)
