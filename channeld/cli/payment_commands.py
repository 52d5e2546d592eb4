"""`channelctl decode`, `pay` and `payments`: paying others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts, payment_follow
from channeld.cli.command import (
    AMOUNT_HELP,
    KeyOption,
    YesFlag,
    command,
    confirm,
    default_command,
    msat_parser,
)
from channeld.cli.failures import NOT_FOUND, USAGE, CliError
from channeld.cli.ids import HASH_HEX, pick, scid
from channeld.cli.invoice_commands import MOST, HashArgument, LimitOption, OffsetOption
from channeld.cli.output import Column, Id
from channeld.cli.payment_options import CostLimits, Limits, StreamFlag
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.payments_pb2 import Attempt, DecodeResponse, Payment, SendPaymentRequest

InvoiceArgument = Annotated[str, typer.Argument(metavar="INVOICE", help="The invoice (BOLT 11).", show_default=False)]


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
    limits: Limits = Limits(),
    stream: StreamFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Pays an invoice, and shows its parts until the outcome is known."""
    pay_invoice(session, invoice, amount, limits, yes, idempotency_key, stream=stream)


def pay_invoice(
    session: Session,
    text: str,
    amount_msat: int | None,
    limits: Limits,
    yes: bool,
    key: str,
    fee_limit_percent: float | None = None,
    stream: bool = False,
) -> None:
    """Shows what will be paid, asks, pays. Raises `CliError` unless it succeeded."""
    from channeld.v1 import payments_pb2

    invoice = _decode(session, text)
    paid_msat = amount_msat or (invoice.amount_msat if invoice.HasField("amount_msat") else None)
    if paid_msat is None:
        raise CliError("The invoice leaves the amount open.", "Say how much with --amount.", USAGE)
    if fee_limit_percent is not None:
        limits = replace(limits, max_fee_msat=int(paid_msat * fee_limit_percent / 100))
    session.out.note(f"Pay {amounts.msat(paid_msat)} to {invoice.payee.hex()}.", "")
    if invoice.description:
        session.out.note(f"For: {invoice.description}", "")
    request = payments_pb2.PayRequest(bolt11=text, amount_msat=amount_msat, idempotency_key=key)
    send_payment(session, payments_pb2.SendPaymentRequest(pay=request), limits, paid_msat, yes, stream)


def send_payment(
    session: Session,
    request: SendPaymentRequest,
    limits: CostLimits,
    amount_msat: int,
    yes: bool,
    stream: bool,
) -> None:
    """Tells the fee limit, asks, sends. Raises `CliError` unless it succeeded."""
    fee_limit_msat = limits.fee_limit_msat(amount_msat)
    limits.put(session, getattr(request, str(request.WhichOneof("order"))), fee_limit_msat)
    session.out.note(f"The fee is at most {amounts.msat(fee_limit_msat)}.", "")
    confirm(session, yes, "It cannot be taken back. Pay?")
    payment = payment_follow.send(session, request, limits.timeout_seconds, stream)
    if not session.out.as_json:
        _show_outcome(session, payment)
    payment_follow.check_outcome(payment, limits.timeout_seconds)


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
            _kind(payment),
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
        Column("Kind"),
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
    session.out.show(answer, lambda: _show_payment(session, answer.payment, answer.attempts))


def track(session: Session, payment_hash: HashArgument) -> None:
    """What becomes of a payment: its attempts so far, and each as it happens, until its end."""
    from channeld.v1 import payments_pb2

    request = payments_pb2.TrackPaymentRequest(payment_hash=_resolve(session, payment_hash))
    updates = session.stream(session.payments.Track, request)
    payment = payment_follow.follow(session, updates, None, "payment")
    if not session.out.as_json:
        _show_outcome(session, payment)
    payment_follow.check_outcome(payment, 0)


def cancel(session: Session, payment_hash: HashArgument) -> None:
    """Stops new attempts of a payment. What is out is awaited, and may still arrive."""
    from channeld.v1 import payments_pb2

    request = payments_pb2.CancelPaymentRequest(payment_hash=_resolve(session, payment_hash))
    answer = session.call(session.payments.Cancel, request)
    session.out.show(answer, lambda: session.out.line(_canceled(answer.payment)))


def _canceled(payment: Payment) -> str:
    from channeld.v1 import payments_pb2

    if payment.state == payments_pb2.PAYMENT_STATE_IN_FLIGHT:
        return (
            f"Nothing more is tried. {amounts.msat(payment.arriving_msat)} are still out: "
            f"`channelctl payments track {payment.payment_hash.hex()}` shows what becomes of them."
        )
    return f"The payment is {_state(payment)}; nothing of it is out."


def _show_payment(session: Session, payment: Payment, attempts: Sequence[Attempt]) -> None:
    session.out.fields(
        [
            ("Payment hash", payment.payment_hash.hex()),
            ("Kind", _kind(payment)),
            ("State", f"{_state(payment)}, canceled" if payment.canceled else _state(payment)),
            ("Why not", payment.failure),
            ("Amount", amounts.msat(payment.amount_msat)),
            ("Fee", f"{amounts.msat(payment.fee_msat)} (at most {amounts.msat(payment.max_fee_msat)})"),
            ("To", payment.destination.hex()),
            ("Started", amounts.point_in_time(payment.created_seconds)),
            ("Ended", amounts.point_in_time(payment.ended_seconds) if payment.HasField("ended_seconds") else ""),
            ("Parts", str(payment.parts)),
            ("Preimage", payment.payment_preimage.hex()),
            ("Records", [f"{record.type}: {record.value.hex()}" for record in payment.custom_records]),
        ]
    )
    if payment.bolt11:
        session.out.line(payment.bolt11)
    for attempt in attempts:
        session.out.line(payment_follow.began(attempt))
        if attempt.HasField("ended_seconds"):
            session.out.line(payment_follow.ended(attempt))


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


def _kind(payment: Payment) -> str:
    from channeld.cli.jsonable import enum_name

    return enum_name(payment, "kind")


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    command(app, "decode")(decode)
    command(app, "pay")(pay)
    payments = typer.Typer(help="Payments that were made: list (also without a word), show, track, cancel.")
    command(payments, "list")(list_)
    command(payments, "show")(show)
    command(payments, "track")(track)
    command(payments, "cancel")(cancel)
    default_command(payments, lambda session: list_(session))
    app.add_typer(payments, name="payments")
