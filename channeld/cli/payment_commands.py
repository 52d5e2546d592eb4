"""`channelctl decode`, `pay` and `payments`: paying others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts
from channeld.cli.command import (
    AMOUNT_HELP,
    KeyOption,
    YesFlag,
    command,
    confirm,
    default_command,
    duration_parser,
    msat_parser,
    parser,
)
from channeld.cli.failures import FAILED, NOT_FOUND, NOT_KNOWN_YET, USAGE, CliError, as_sentence
from channeld.cli.ids import HASH_HEX, pick, scid
from channeld.cli.invoice_commands import MOST, HashArgument, LimitOption, OffsetOption
from channeld.cli.output import Column, Id
from channeld.cli.session import DEFAULT_TIMEOUT_SECONDS, Session

if TYPE_CHECKING:
    from channeld.v1.payments_pb2 import DecodeResponse, Payment

InvoiceArgument = Annotated[str, typer.Argument(metavar="INVOICE", help="The invoice (BOLT 11).", show_default=False)]
LEAST_FEE_LIMIT_MSAT = 10_000
FEE_LIMIT_HELP = "The most that the payment may cost besides."
FEE_LIMIT_DEFAULT = "1 % of the amount, at least 10 sat"


def decode(session: Session, invoice: InvoiceArgument) -> None:
    """What an invoice says."""
    answer = _decode(session, invoice)
    session.out.show(answer, lambda: _show_decoded(session, answer))


def _decode(session: Session, invoice: str) -> DecodeResponse:
    from channeld.v1 import payments_pb2

    return session.call(session.payments.Decode, payments_pb2.DecodeRequest(invoice=invoice))


def _show_decoded(session: Session, invoice: DecodeResponse) -> None:
    until = amounts.point_in_time(invoice.created_seconds + invoice.expiry_seconds)
    session.out.fields(
        [
            ("Amount", amounts.msat(invoice.amount_msat) if invoice.HasField("amount_msat") else "any"),
            ("What for", invoice.description),
            ("Payee", invoice.payee.hex()),
            ("Network", invoice.network),
            ("Made", amounts.point_in_time(invoice.created_seconds)),
            ("Payable until", f"{until} (expired)" if invoice.expired else until),
            ("Payment hash", invoice.payment_hash.hex()),
            ("Description hash", invoice.description_hash.hex()),
            ("Last hop leaves", f"{invoice.min_final_cltv_expiry_delta_blocks} blocks"),
            ("On-chain fallback", list(invoice.fallback_addresses)),
            (
                "Ways there",
                [
                    " then ".join(f"{hop.node_id.hex()} over {scid(hop.short_channel_id)}" for hop in hint.hops)
                    for hint in invoice.route_hints
                ],
            ),
            ("Asks for", ", ".join(invoice.features)),
            ("Metadata", invoice.payment_metadata.hex()),
        ]
    )


def pay(
    session: Session,
    invoice: InvoiceArgument,
    amount: Annotated[
        int | None,
        typer.Option(
            "--amount",
            parser=msat_parser,
            metavar="AMOUNT",
            help=f"{AMOUNT_HELP} Needed when the invoice leaves it open.",
            show_default=False,
        ),
    ] = None,
    max_fee: Annotated[
        int | None,
        typer.Option(
            "--max-fee",
            parser=parser(amounts.parse_msat),
            metavar="AMOUNT",
            help=FEE_LIMIT_HELP,
            show_default=FEE_LIMIT_DEFAULT,
        ),
    ] = None,
    timeout: Annotated[
        int,
        typer.Option(
            "--timeout",
            parser=duration_parser,
            metavar="TIME",
            show_default="60s",
            help="How long to wait; the payment goes on after it.",
        ),
    ] = 60,  # seconds
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Pays an invoice, and waits for the outcome."""
    pay_invoice(session, invoice, amount, max_fee, timeout, yes, idempotency_key)


def pay_invoice(
    session: Session,
    text: str,
    amount_msat: int | None,
    max_fee_msat: int | None,
    timeout_seconds: int,
    yes: bool,
    key: str,
    fee_limit_percent: float | None = None,
) -> None:
    """Shows what will be paid, asks, pays. Raises `CliError` unless it succeeded."""
    from channeld.v1 import payments_pb2

    invoice = _decode(session, text)
    paid_msat = amount_msat or (invoice.amount_msat if invoice.HasField("amount_msat") else None)
    if paid_msat is None:
        raise CliError("The invoice leaves the amount open.", "Say how much with --amount.", USAGE)
    if fee_limit_percent is not None:
        max_fee_msat = int(paid_msat * fee_limit_percent / 100)
    elif max_fee_msat is None:
        max_fee_msat = max(LEAST_FEE_LIMIT_MSAT, paid_msat // 100)
    session.out.note(f"Pay {amounts.msat(paid_msat)} to {invoice.payee.hex()}.", "")
    if invoice.description:
        session.out.note(f"For: {invoice.description}", "")
    session.out.note(f"The fee is at most {amounts.msat(max_fee_msat)}.", "")
    confirm(session, yes, "It cannot be taken back. Pay?")
    request = payments_pb2.PayRequest(
        bolt11=text,
        amount_msat=amount_msat,
        max_fee_msat=max_fee_msat,
        timeout_seconds=float(timeout_seconds),
        idempotency_key=key,
    )
    with _ticking(session):
        answer = session.call_once(
            lambda session: session.payments.Pay, request, timeout_seconds + DEFAULT_TIMEOUT_SECONDS
        )
    payment = answer.payment
    session.out.show(answer, lambda: _show_outcome(session, payment))
    if payment.state == payments_pb2.PAYMENT_STATE_FAILED:
        raise CliError(
            as_sentence(f"The payment failed: {payment.failure}"), "The money is back; nothing was paid.", FAILED
        )
    if payment.state != payments_pb2.PAYMENT_STATE_SUCCEEDED:
        raise CliError(
            f"The payment is still under way after {amounts.duration(timeout_seconds)}.",
            f"See what becomes of it with `channelctl payments show {payment.payment_hash.hex()}`.",
            NOT_KNOWN_YET,
        )


@contextmanager
def _ticking(session: Session) -> Iterator[None]:
    """Counts the seconds while a payment is under way."""
    started = time.monotonic()
    over = threading.Event()

    def tick(update: Callable[[str], None]) -> None:
        while not over.wait(1):
            update(f"Paying, {amounts.duration(int(time.monotonic() - started))}")

    with session.out.status("Paying") as update:
        thread = threading.Thread(target=tick, args=(update,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _show_outcome(session: Session, payment: Payment) -> None:
    if not payment.HasField("payment_preimage"):
        return
    session.out.line(f"Paid {amounts.msat(payment.amount_msat)}, fee {amounts.msat(payment.fee_msat)}.", "green")
    session.out.fields([("Payment hash", payment.payment_hash.hex()), ("Preimage", payment.payment_preimage.hex())])


def list_(session: Session, limit: LimitOption = 100, offset: OffsetOption = 0) -> None:
    """Payments, newest first."""
    from channeld.v1 import payments_pb2

    answer = session.call(session.payments.List, payments_pb2.ListPaymentsRequest(limit=limit, offset=offset))
    out = session.out
    rows = (
        (
            Id(payment.payment_hash.hex()),
            amounts.minute(payment.created_seconds),
            _state(payment),
            amounts.msat(payment.amount_msat),
            amounts.msat(payment.fee_msat),
            Id(payment.destination.hex()),
            payment.failure,
        )
        for payment in answer.payments
    )
    columns = [
        Column("Payment hash"),
        Column("Started"),
        Column("State"),
        Column("Amount", right=True),
        Column("Fee", right=True),
        Column("To"),
        Column("Why not", fold=True),
    ]
    out.show(answer, lambda: out.table(columns, rows, "There are no payments. `channelctl pay` makes one."))


def show(session: Session, payment_hash: HashArgument) -> None:
    """Everything about one payment."""
    from channeld.v1 import payments_pb2

    request = payments_pb2.GetPaymentRequest(payment_hash=_resolve(session, payment_hash))
    answer = session.call(session.payments.Get, request)
    session.out.show(answer, lambda: _show_payment(session, answer.payment))


def _show_payment(session: Session, payment: Payment) -> None:
    session.out.fields(
        [
            ("Payment hash", payment.payment_hash.hex()),
            ("State", _state(payment)),
            ("Why not", payment.failure),
            ("Amount", amounts.msat(payment.amount_msat)),
            ("Fee", amounts.msat(payment.fee_msat)),
            ("To", payment.destination.hex()),
            ("Started", amounts.point_in_time(payment.created_seconds)),
            ("Ended", amounts.point_in_time(payment.ended_seconds) if payment.HasField("ended_seconds") else ""),
            ("Parts", str(payment.parts)),
            ("Preimage", payment.payment_preimage.hex()),
        ]
    )
    session.out.line(payment.bolt11)


def _resolve(session: Session, prefix: str) -> bytes:
    from channeld.v1 import payments_pb2

    if len(prefix) == HASH_HEX:
        return bytes.fromhex(prefix)
    listed = session.call(session.payments.List, payments_pb2.ListPaymentsRequest(limit=MOST)).payments
    found = pick(prefix, listed, lambda payment: payment.payment_hash.hex(), "the payment hash")
    if found is None:
        raise CliError(f"There is no payment {prefix}.", "See `channelctl payments list`.", NOT_FOUND)
    return found.payment_hash


def _state(payment: Payment) -> str:
    from channeld.cli.jsonable import enum_name

    name = enum_name(payment, "state")
    return "under way" if name == "in_flight" else name


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    command(app, "decode")(decode)
    command(app, "pay")(pay)
    payments = typer.Typer(help="Payments that were made: list (also without a word), show.")
    command(payments, "list")(list_)
    command(payments, "show")(show)
    default_command(payments, lambda session: list_(session))
    app.add_typer(payments, name="payments")
