"""Where the money went: what everybody owned before and owns after, and every reason for the difference.

What the sides own is asked of the daemons; what fees were paid is read from the chain itself. All in msat: forwarding
is paid for in fractions of a satoshi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.v1 import channels_pb2, wallet_pb2
from wallet.bitcoin import Tx

PAID = "paid"
RECEIVED = "received"
ROUTING_FEES = "fees paid"
EARNED = "fees earned"
FUNDING_FEES = "funding fees"
CLOSING_FEES = "closing fees"
FRACTIONS = "lost fractions"
"""A closing transaction has no room for what is less than a satoshi."""
PENALTY = "penalty"
JUSTICE_FEES = "justice fees"
ANCHORS = "anchors left"
"""Too small to be worth taking."""
MINERS = (FUNDING_FEES, CLOSING_FEES, FRACTIONS, JUSTICE_FEES, ANCHORS)
"""What leaves the network; all else goes from one to another."""


@dataclass
class Account:
    """One side's amounts, all in msat."""

    name: str
    before_msat: int
    put_in_msat: int = 0
    """What it put into channels when they were opened."""
    share_msat: int = 0
    """What it had in channels when they were closed, as the daemon itself said."""
    after_msat: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    """Every reason for a difference: more if positive, less if negative."""

    def book(self, line: str, msat: int) -> None:
        """Adds to a line."""
        self.lines[line] = self.lines.get(line, 0) + msat

    @property
    def unexplained_msat(self) -> int:
        """What is missing (or too much, if negative) after all that is explained."""
        return self.before_msat + sum(self.lines.values()) - self.after_msat

    @property
    def channel_error_msat(self) -> int:
        """By how much the channels' own books are off."""
        moved = sum(msat for line, msat in self.lines.items() if line in (PAID, RECEIVED, ROUTING_FEES, EARNED))
        return self.put_in_msat + moved - self.share_msat


class Ledger:
    """An account for each daemon of an act."""

    def __init__(self, title: str = "Every satoshi") -> None:
        self.title = title
        self.accounts: dict[str, Account] = {}

    async def open(self, *daemons: DaemonProcess) -> None:
        """What they own now is what they had before."""
        for daemon in daemons:
            name = daemon.name.title()
            self.accounts[name] = Account(name, await confirmed_sat(daemon) * 1000)

    async def close(self, *daemons: DaemonProcess) -> None:
        """What they own now is what they have after."""
        for daemon in daemons:
            self[daemon].after_msat = await confirmed_sat(daemon) * 1000

    def __getitem__(self, daemon: DaemonProcess) -> Account:
        return self.accounts[daemon.name.title()]

    def payment(self, payer: DaemonProcess, payee: DaemonProcess, amount_msat: int, fee_msat: int = 0) -> None:
        """Books a payment that succeeded."""
        self[payer].book(PAID, -amount_msat)
        self[payee].book(RECEIVED, amount_msat)
        if fee_msat:
            self[payer].book(ROUTING_FEES, -fee_msat)

    async def funded(self, lab: Lab, opener: DaemonProcess, channel: channels_pb2.Channel) -> Tx:
        """Books a channel that was opened; its funding transaction."""
        funding = await fetch_tx(lab, channel.funding_txid)
        self[opener].put_in_msat += int(channel.capacity_sat) * 1000
        self[opener].book(FUNDING_FEES, -await fee_sat(lab, funding) * 1000)
        return funding

    def closed(self, shares_msat: dict[DaemonProcess, int], paid_sat: dict[DaemonProcess, int], fee_sat: int) -> None:
        """Books a channel that was closed together: what each had in it, what the closing transaction paid to whom, and
        its fee. The fee is whoever's who got less than its share, and must be what all are short of."""
        short_msat = 0
        for daemon, share_msat in shares_msat.items():
            account = self[daemon]
            account.share_msat += share_msat
            whole_sat, fraction_msat = divmod(share_msat, 1000)
            lacking_msat = (whole_sat - paid_sat[daemon]) * 1000
            if fraction_msat:
                account.book(FRACTIONS, -fraction_msat)
            if lacking_msat:
                account.book(CLOSING_FEES, -lacking_msat)
            short_msat += lacking_msat + fraction_msat
        if short_msat != fee_sat * 1000:
            raise LedgerError(f"a closing transaction pays {fee_sat} sat, but its sides are short of {short_msat} msat")

    def faults(self) -> list[str]:
        """A sentence for each millisatoshi that is not where it must be; none is what is wanted."""
        sentences = []
        for account in self.accounts.values():
            if account.channel_error_msat:
                sentences.append(f"{account.name}'s share of channels is off by {account.channel_error_msat} msat")
            if account.unexplained_msat > 0:
                sentences.append(f"{account.unexplained_msat} msat of {account.name} are missing")
            elif account.unexplained_msat < 0:
                sentences.append(f"{account.name} has {-account.unexplained_msat} msat too many")
        moved = self._total(lambda line: line not in MINERS)
        if moved:
            sentences.append(f"what some gave and others got differs by {abs(moved)} msat")
        return sentences

    def _total(self, counts: Callable[[str], bool]) -> int:
        return sum(msat for a in self.accounts.values() for line, msat in a.lines.items() if counts(line))

    def table(self) -> Table:
        """Everything, line by line; the amounts of each column add up from top to bottom."""
        accounts = list(self.accounts.values())
        table = Table(
            title=f"{self.title} (sat)",
            title_justify="left",
            box=box.SIMPLE,
            show_edge=False,
            pad_edge=False,
            padding=0,
        )
        table.add_column("", no_wrap=True)
        for account in accounts:
            table.add_column(account.name, justify="right", no_wrap=True)

        def line(label: str, amounts: list[int], sign: str = "") -> None:
            table.add_row(label, *(_sat(msat, sign) for msat in amounts))

        line("on chain before", [a.before_msat for a in accounts])
        line("  into channels", [a.put_in_msat for a in accounts])
        line("  out of channels", [a.share_msat for a in accounts])
        table.add_section()
        for label in dict.fromkeys(name for account in accounts for name in account.lines):
            line(label, [a.lines.get(label, 0) for a in accounts], "+")
        table.add_section()
        line("on chain after", [a.after_msat for a in accounts])
        line("unexplained", [a.unexplained_msat for a in accounts])
        return table


class LedgerError(Exception):
    """The books contradict the chain; the text is a sentence."""


def _sat(msat: int, sign: str) -> str:
    """In satoshi, with three decimals where there are fractions; with its sign if one is wanted."""
    number = f"{msat // 1000:{sign},}" if msat % 1000 == 0 else f"{msat / 1000:{sign},.3f}"
    return number if msat else "0"


async def fetch_tx(lab: Lab, txid: bytes) -> Tx:
    """A transaction of the chain or of the mempool."""
    return Tx.parse(bytes.fromhex(await lab.rpc.call("getrawtransaction", txid[::-1].hex())))


async def fee_sat(lab: Lab, tx: Tx) -> int:
    """What a transaction pays: the outputs that it spends less those that it makes."""
    spent_sat = 0
    for txin in tx.inputs:
        parent = await fetch_tx(lab, txin.outpoint.txid)
        spent_sat += parent.outputs[txin.outpoint.vout].value_sat
    return spent_sat - sum(output.value_sat for output in tx.outputs)


async def confirmed_sat(daemon: DaemonProcess) -> int:
    """What its wallet owns, confirmed."""
    return int((await daemon.balance()).confirmed_sat)


async def paid_by(tx: Tx, daemon: DaemonProcess) -> int:
    """What `tx` pays to the daemon's wallet: its coins that are outputs of `tx`."""
    coins = (await daemon.client.wallet.ListCoins(wallet_pb2.ListCoinsRequest())).coins
    return sum(int(coin.amount_sat) for coin in coins if coin.txid == tx.txid())
