"""`channelctl wallet ...`: money on chain."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts
from channeld.cli.command import (
    AMOUNT_HELP,
    FeerateOption,
    KeyOption,
    YesFlag,
    command,
    confirm,
    feerate_parser,
    parser,
    warn_if_behind,
)
from channeld.cli.failures import INTERRUPTED, NOT_FOUND, CliError
from channeld.cli.ids import HASH_HEX, parse_hash_prefix, pick, txid_hex
from channeld.cli.output import Column, Id
from channeld.cli.session import SLOW_TIMEOUT_SECONDS, Session

if TYPE_CHECKING:
    from channeld.v1.wallet_pb2 import GetBalanceResponse, RescanResponse, Transaction

EVERYTHING = "all"


class AddressKind(StrEnum):
    """What `new-address` can make, and lncli's words for it."""

    P2TR = "p2tr"
    P2WPKH = "p2wpkh"
    P2WKH = "p2wkh"


def amount_or_all(text: str) -> int | str:
    """An amount in sat, or all."""
    return EVERYTHING if text.strip().lower() == EVERYTHING else amounts.parse_sat(text)


def new_address(
    session: Session,
    kind: Annotated[AddressKind, typer.Argument(help="p2tr (taproot) or p2wpkh.")] = AddressKind.P2TR,
) -> None:
    """A fresh address to send money to."""
    from channeld.v1 import wallet_pb2

    number = wallet_pb2.ADDRESS_KIND_P2TR if kind is AddressKind.P2TR else wallet_pb2.ADDRESS_KIND_P2WPKH
    answer = session.call(session.wallet.NewAddress, wallet_pb2.NewAddressRequest(kind=number))
    session.out.show(answer, lambda: session.out.line(answer.address))


def balance(session: Session) -> None:
    """What the node owns, on chain and in channels."""
    from channeld.v1 import wallet_pb2

    answer = session.call(session.wallet.GetBalance, wallet_pb2.GetBalanceRequest())
    session.out.show(answer, lambda: _show_balance(session, answer))


def _show_balance(session: Session, balance: GetBalanceResponse) -> None:
    on_chain_sat = balance.confirmed_sat + balance.unconfirmed_sat + balance.immature_sat + balance.reserved_sat
    total_msat = (on_chain_sat + balance.closing_sat) * 1000 + balance.channels_local_msat
    session.out.table(
        [Column("Where"), Column("Amount", right=True)],
        [
            ("On chain, confirmed", amounts.sat(balance.confirmed_sat)),
            ("On chain, not confirmed", amounts.sat(balance.unconfirmed_sat)),
            ("On chain, not mature", amounts.sat(balance.immature_sat)),
            ("On chain, reserved", amounts.sat(balance.reserved_sat)),
            ("In channels, ours", amounts.msat(balance.channels_local_msat)),
            ("In channels, theirs", amounts.msat(balance.channels_remote_msat)),
            ("In channels that close", amounts.sat(balance.closing_sat)),
            ("In payments under way", amounts.msat(balance.pending_htlcs_msat)),
            ("Ours in all", amounts.msat(total_msat)),
        ],
        "",
    )


def coins(session: Session) -> None:
    """The wallet's unspent outputs."""
    from channeld.v1 import wallet_pb2

    answer = session.call(session.wallet.ListCoins, wallet_pb2.ListCoinsRequest())
    out = session.out
    rows = (
        (
            Id(txid_hex(coin.txid), f":{coin.vout}"),
            amounts.sat(coin.amount_sat),
            str(coin.confirmations),
            "reserved" if coin.reserved else "",
            coin.address,
        )
        for coin in answer.coins
    )
    columns = [
        Column("Output"),
        Column("Amount", right=True),
        Column("Conf.", right=True),
        Column(""),
        Column("Address", fold=True),
    ]
    out.show(answer, lambda: out.table(columns, rows, "The wallet is empty. `channelctl wallet new-address` fills it."))


def transactions(session: Session) -> None:
    """Transactions that paid the wallet or were paid by it, newest first."""
    from channeld.v1 import wallet_pb2

    answer = session.call(session.wallet.ListTransactions, wallet_pb2.ListTransactionsRequest())
    out = session.out
    rows = (
        (
            Id(txid_hex(each.txid)),
            amounts.minute(each.created_seconds),
            amounts.sat(each.amount_sat),
            amounts.sat(each.fee_sat) if each.HasField("fee_sat") else "",
            str(each.confirmations),
            each.label,
        )
        for each in answer.transactions
    )
    columns = [
        Column("Transaction"),
        Column("Time"),
        Column("Amount", right=True),
        Column("Fee", right=True),
        Column("Conf.", right=True),
        Column("What for", fold=True),
    ]
    out.show(answer, lambda: out.table(columns, rows, "There are no transactions."))


def send(
    session: Session,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where to.", show_default=False)],
    amount: Annotated[
        str,
        typer.Argument(
            parser=parser(amount_or_all), metavar="AMOUNT", help=f"{AMOUNT_HELP} Or all.", show_default=False
        ),
    ],
    feerate: FeerateOption = None,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Sends money to an address on chain."""
    amount_sat = None if amount == EVERYTHING else int(amount)
    send_coins(session, address, amount_sat, feerate, yes, idempotency_key)


def send_coins(
    session: Session, address: str, amount_sat: int | None, feerate: int | None, yes: bool, key: str
) -> None:
    """Sends `amount_sat` (None: everything) at `feerate` sat per 1000 weight units."""
    from channeld.v1 import wallet_pb2

    warn_if_behind(session)
    what = "everything in the wallet" if amount_sat is None else amounts.sat(amount_sat)
    rate = f" at {amounts.feerate(feerate)}" if feerate is not None else ""
    session.out.note(f"Send {what} to {address}{rate}.", "")
    confirm(session, yes, "It cannot be taken back. Send?")
    request = wallet_pb2.SendRequest(
        address=address, amount_sat=amount_sat, feerate_per_kw=feerate, idempotency_key=key
    )
    answer = session.call_once(lambda session: session.wallet.Send, request)
    session.out.show(answer, lambda: _show_transaction(session, "Sent", answer.transaction))


def bump(
    session: Session,
    txid: Annotated[
        str,
        typer.Argument(
            parser=parser(lambda text: parse_hash_prefix(text, "a transaction id")),
            metavar="TXID",
            help="The transaction to replace; its first few characters will do.",
            show_default=False,
        ),
    ],
    feerate: Annotated[
        int,
        typer.Option(
            "--sat-per-vbyte",
            "--sat_per_vbyte",
            parser=feerate_parser,
            metavar="FEERATE",
            help="The feerate to reach, in sat/vB.",
            show_default=False,
        ),
    ],
    yes: YesFlag = False,
) -> None:
    """Replaces a transaction that is not confirmed yet by one that pays more."""
    from channeld.v1 import wallet_pb2

    if len(txid) < HASH_HEX:
        listed = session.call(session.wallet.ListTransactions, wallet_pb2.ListTransactionsRequest()).transactions
        found = pick(txid, listed, lambda each: txid_hex(each.txid), "the transaction id")
        if found is None:
            raise CliError(f"The wallet has no transaction {txid}.", "See `channelctl wallet transactions`.", NOT_FOUND)
        txid = txid_hex(found.txid)
    session.out.note(f"Raise the feerate of {txid} to {amounts.feerate(feerate)}.", "")
    confirm(session, yes, "The additional fee is gone for good. Go on?")
    request = wallet_pb2.BumpRequest(txid=bytes.fromhex(txid)[::-1], feerate_per_kw=feerate)
    answer = session.call(session.wallet.Bump, request, SLOW_TIMEOUT_SECONDS)
    session.out.show(answer, lambda: _show_transaction(session, "Replaced by", answer.transaction))


def rescan(
    session: Session,
    from_height: Annotated[
        int,
        typer.Argument(
            min=0,
            metavar="FROM_HEIGHT",
            help="The first block to look at, from before this seed was used; 0 for all.",
            show_default=False,
        ),
    ],
) -> None:
    """Looks for money of this seed in old blocks again, as after --gap-limit was raised."""
    from channeld.v1 import wallet_pb2

    answer = wallet_pb2.RescanResponse()
    try:
        with session.out.status("Looking through old blocks") as update:
            for answer in session.stream(session.wallet.Rescan, wallet_pb2.RescanRequest(from_height=from_height)):
                update(f"Block {answer.height:,} of {answer.tip_height:,}: {_found(answer)}")
    except KeyboardInterrupt:
        raise CliError(
            f"You stopped it at block {answer.height:,}; what was found until then is kept: {_found(answer)}.",
            _rest_of(answer, from_height),
            INTERRUPTED,
        ) from None
    if answer.height < answer.tip_height:
        raise CliError(
            f"The blocks after {answer.height:,} changed meanwhile; what was found before them is kept.",
            _rest_of(answer, from_height),
        )
    blocks = amounts.count(answer.height - from_height + 1, "block")
    session.out.show(answer, lambda: session.out.line(f"Looked through {blocks}: {_found(answer)}."))


def _rest_of(answer: RescanResponse, from_height: int) -> str:
    return f"`channelctl wallet rescan {max(from_height, answer.height + 1)}` goes on."


def _found(answer: RescanResponse) -> str:
    if not answer.found_coins:
        return "nothing new was found"
    return f"{amounts.count(answer.found_coins, 'new coin')} of {amounts.sat(answer.found_sat)} in all"


def _show_transaction(session: Session, verb: str, transaction: Transaction) -> None:
    fee = f" (fee {amounts.sat(transaction.fee_sat)})" if transaction.HasField("fee_sat") else ""
    session.out.line(f"{verb}: {amounts.sat(-transaction.amount_sat)} left the wallet{fee}.")
    session.out.line(f"Transaction {txid_hex(transaction.txid)}")


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    wallet = typer.Typer(help="Money on chain: addresses, balance, coins, sending.", no_args_is_help=True)
    command(wallet, "new-address")(new_address)
    command(wallet, "balance")(balance)
    command(wallet, "coins")(coins)
    command(wallet, "transactions")(transactions)
    command(wallet, "send")(send)
    command(wallet, "bump")(bump)
    command(wallet, "rescan")(rescan)
    app.add_typer(wallet, name="wallet")
