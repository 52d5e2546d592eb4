"""Where the money went: what each side owned before, had in the channel and owns after, with every fee named.

What the sides own is asked of the daemons; what fees were paid is read from the chain itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.v1 import wallet_pb2
from wallet.bitcoin import Tx


@dataclass
class Account:
    """One side's amounts, all in sat."""

    name: str
    before_sat: int
    in_channel_at_open_sat: int = 0
    paid_sat: int = 0
    received_sat: int = 0
    in_channel_at_close_sat: int = 0
    """As the daemon itself said before closing."""
    from_closing_sat: int = 0
    """What the closing transaction paid it."""
    after_sat: int = 0
    fees_sat: dict[str, int] = field(default_factory=dict)

    @property
    def unexplained_sat(self) -> int:
        """What is missing (or too much, if negative) after payments and fees."""
        due_sat = self.before_sat - self.paid_sat + self.received_sat - sum(self.fees_sat.values())
        return due_sat - self.after_sat

    @property
    def channel_error_sat(self) -> int:
        """By how much the channel's own books are off."""
        return self.in_channel_at_open_sat - self.paid_sat + self.received_sat - self.in_channel_at_close_sat


@dataclass
class Ledger:
    """The opener, who brought the money in, and the other side."""

    opener: Account
    other: Account

    @property
    def accounts(self) -> tuple[Account, Account]:
        """Both."""
        return self.opener, self.other

    def payment(self, payer: Account, amount_sat: int) -> None:
        """Books a payment that succeeded."""
        payee = self.other if payer is self.opener else self.opener
        payer.paid_sat += amount_sat
        payee.received_sat += amount_sat

    def faults(self) -> list[str]:
        """A sentence for each satoshi that is not where it must be; none is what is wanted."""
        sentences = []
        for account in self.accounts:
            if account.channel_error_sat:
                sentences.append(f"the channel's share of {account.name} is off by {account.channel_error_sat} sat")
            if account.unexplained_sat > 0:
                sentences.append(f"{account.unexplained_sat} sat of {account.name} are missing")
            elif account.unexplained_sat < 0:
                sentences.append(f"{account.name} has {-account.unexplained_sat} sat too many")
        return sentences

    def table(self) -> Table:
        """Everything, line by line; the amounts of each column add up from top to bottom."""
        table = Table(title="Every satoshi", title_justify="left")
        table.add_column("")
        for account in self.accounts:
            table.add_column(account.name, justify="right")

        def line(label: str, amounts: list[int], sign: str = "", end_section: bool = False) -> None:
            cells = (f"{sign if sat else ''}{sat:,} sat" for sat in amounts)
            table.add_row(label, *cells, end_section=end_section)

        line("on chain before", [a.before_sat for a in self.accounts])
        line("  put into the channel", [a.in_channel_at_open_sat for a in self.accounts])
        line("  share when it closed", [a.in_channel_at_close_sat for a in self.accounts], end_section=True)
        line("paid", [a.paid_sat for a in self.accounts], "-")
        line("received", [a.received_sat for a in self.accounts], "+")
        for fee in dict.fromkeys(name for account in self.accounts for name in account.fees_sat):
            line(f"fee of the {fee}", [a.fees_sat.get(fee, 0) for a in self.accounts], "-")
        table.add_section()
        line("on chain after", [a.after_sat for a in self.accounts])
        line("unexplained", [a.unexplained_sat for a in self.accounts])
        return table


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
