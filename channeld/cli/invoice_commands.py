"""`channelctl invoice ...`: asking for money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from channeld.cli import amounts
from channeld.cli.command import (
    AMOUNT_HELP,
    KeyOption,
    command,
    duration_parser,
    hash_parser,
    msat_parser,
    payment_hash_parser,
)
from channeld.cli.failures import NOT_FOUND, USAGE, CliError
from channeld.cli.ids import HASH_HEX, pick
from channeld.cli.output import Column, Id
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.invoices_pb2 import Invoice

LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many at most.")]
OffsetOption = Annotated[int, typer.Option("--offset", min=0, help="How many of the newest to leave out.")]
MOST = 10_000

CltvOption = Annotated[
    int | None,
    typer.Option(
        "--cltv-delta",
        "--cltv_expiry_delta",
        min=1,
        metavar="BLOCKS",
        help="Blocks that the payment must leave here; for a hold invoice: how long it may wait, and 21 more.",
        show_default=False,
    ),
]

HashArgument = Annotated[
    str,
    typer.Argument(
        parser=payment_hash_parser,
        metavar="HASH",
        help="The payment hash, or the first few characters of it.",
        show_default=False,
    ),
]


def _hash_option(flag: str, what: str, help: str) -> OptionInfo:
    return typer.Option(flag, parser=hash_parser(what), metavar="HEX", help=help, show_default=False)  # type: ignore[no-any-return]


ExpiryOption = Annotated[
    int,
    typer.Option(
        "--expiry",
        parser=duration_parser,
        metavar="TIME",
        show_default="1h",
        help="How long it can be paid: 30m, 12h, 7d.",
    ),
]
DescriptionHashOption = Annotated[
    bytes | None,
    _hash_option(
        "--description-hash",
        "a description hash",
        "SHA-256 of a longer description, which the payer has; instead of one.",
    ),
]
PreimageOption = Annotated[
    bytes | None,
    _hash_option("--preimage", "a preimage", "Use this secret; without it the daemon draws one, as it should."),
]
PaymentHashOption = Annotated[
    bytes | None,
    _hash_option("--hash", "a payment hash", "Of a preimage that somebody else has; it makes a hold invoice."),
]


def create(
    session: Session,
    amount: Annotated[
        int | None,
        typer.Argument(
            parser=msat_parser,
            metavar="[AMOUNT]",
            help=f"{AMOUNT_HELP} Left out: the payer chooses.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str, typer.Argument(metavar="[DESCRIPTION]", help="What it is for.", show_default=False)] = "",
    description: Annotated[
        str, typer.Option("--description", "-d", "--memo", metavar="TEXT", help="What it is for.", show_default=False)
    ] = "",
    expiry: ExpiryOption = 3600,  # seconds
    description_hash: DescriptionHashOption = None,
    preimage: PreimageOption = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Let the payment wait for `invoice settle` or `invoice cancel`.")
    ] = False,
    payment_hash: PaymentHashOption = None,
    cltv_delta: CltvOption = None,
    idempotency_key: KeyOption = "",
) -> None:
    """Makes an invoice to be paid over Lightning."""
    create_invoice(
        session,
        amount,
        description or text,
        expiry,
        description_hash,
        preimage,
        idempotency_key,
        hold=hold,
        payment_hash=payment_hash,
        cltv_delta=cltv_delta,
    )


def create_invoice(
    session: Session,
    amount_msat: int | None,
    description: str,
    expiry_seconds: int,
    description_hash: bytes | None = None,
    preimage: bytes | None = None,
    key: str = "",
    *,
    hold: bool = False,
    payment_hash: bytes | None = None,
    cltv_delta: int | None = None,
) -> None:
    """Makes an invoice and shows it."""
    from channeld.v1 import invoices_pb2

    request = invoices_pb2.CreateInvoiceRequest(
        amount_msat=amount_msat,
        description=description,
        expiry_seconds=expiry_seconds,
        description_hash=description_hash,
        payment_preimage=preimage,
        idempotency_key=key,
        hold=hold,
        payment_hash=payment_hash,
        min_final_cltv_expiry_delta_blocks=cltv_delta,
    )
    answer = session.call(session.invoices.Create, request)
    session.out.show(answer, lambda: _show_created(session, answer.invoice))


def _show_created(session: Session, invoice: Invoice) -> None:
    session.out.line(invoice.bolt11)
    session.out.fields(
        [
            ("Amount", _amount(invoice)),
            ("Payment hash", invoice.payment_hash.hex()),
            ("Payable for", amounts.duration(invoice.expiry_seconds)),
        ]
    )
    if invoice.is_hold:
        session.out.line("What is paid waits for `channelctl invoice settle` or `channelctl invoice cancel`.")


def list_(session: Session, limit: LimitOption = 100, offset: OffsetOption = 0) -> None:
    """Invoices, newest first."""
    from channeld.v1 import invoices_pb2

    answer = session.call(session.invoices.List, invoices_pb2.ListInvoicesRequest(limit=limit, offset=offset))
    out = session.out
    rows = (
        (
            Id(invoice.payment_hash.hex()),
            amounts.minute(invoice.created_seconds),
            _state(invoice),
            _amount(invoice),
            amounts.msat(invoice.received_msat) if invoice.received_msat else "",
            invoice.description or _KINDS[invoice.kind],
        )
        for invoice in answer.invoices
    )
    columns = [
        Column("Payment hash"),
        Column("Made"),
        Column("State"),
        Column("Amount", right=True),
        Column("Received", right=True),
        Column("What for", fold=True),
    ]
    out.show(answer, lambda: out.table(columns, rows, "There are no invoices. `channelctl invoice create` makes one."))


def show(session: Session, payment_hash: HashArgument) -> None:
    """Everything about one invoice."""
    from channeld.v1 import invoices_pb2

    request = invoices_pb2.GetInvoiceRequest(payment_hash=_resolve(session, payment_hash))
    answer = session.call(session.invoices.Get, request)
    session.out.show(answer, lambda: _show_invoice(session, answer.invoice))


def _show_invoice(session: Session, invoice: Invoice) -> None:
    settled = amounts.point_in_time(invoice.settled_seconds) if invoice.HasField("settled_seconds") else ""
    expires = amounts.point_in_time(invoice.created_seconds + invoice.expiry_seconds)
    session.out.fields(
        [
            ("Payment hash", invoice.payment_hash.hex()),
            ("State", _state(invoice)),
            ("Amount", _amount(invoice)),
            ("Received", amounts.msat(invoice.received_msat) if invoice.received_msat else ""),
            ("What for", invoice.description),
            ("Made", amounts.point_in_time(invoice.created_seconds)),
            ("Payable until", expires),
            ("Paid", settled),
            ("Waits until block", str(invoice.deadline_height) if invoice.HasField("deadline_height") else ""),
            ("Preimage", invoice.payment_preimage.hex() if invoice.HasField("payment_preimage") else ""),
            ("Asked for by", _KINDS[invoice.kind]),
            *((f"Record {record.type}", _readable(record.value)) for record in invoice.custom_records),
        ]
    )
    if invoice.bolt11:
        session.out.line(invoice.bolt11)


_KINDS = {0: "", 1: "", 2: "nobody (keysend)", 3: "blinded paths"}


def _readable(value: bytes) -> str:
    """A payer's record: as text where it is text."""
    text = value.decode("utf-8", "replace")
    return text if text.isprintable() and "\ufffd" not in text else value.hex()


def cancel(session: Session, payment_hash: HashArgument) -> None:
    """Makes an invoice unpayable; a payment that waits for `invoice settle` goes back."""
    from channeld.v1 import invoices_pb2

    request = invoices_pb2.CancelInvoiceRequest(payment_hash=_resolve(session, payment_hash))
    answer = session.call(session.invoices.Cancel, request)
    session.out.show(answer, lambda: session.out.line("The invoice is canceled; nobody can pay it any more."))


def settle(
    session: Session,
    preimage: Annotated[
        bytes | None,
        typer.Argument(
            parser=hash_parser("a preimage"), metavar="[PREIMAGE]", help="32 bytes, hex.", show_default=False
        ),
    ] = None,
    payment_hash: Annotated[
        str | None,
        typer.Option(
            "--hash",
            parser=payment_hash_parser,
            metavar="HASH",
            help="Instead, if the daemon made the preimage: the payment hash, or the first few characters of it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Takes the payment of a hold invoice, which waits for it."""
    if (preimage is None) == (payment_hash is None):
        raise CliError("Give the preimage, or the payment hash with --hash.", "", USAGE)
    settle_invoice(session, preimage, None if payment_hash is None else _resolve(session, payment_hash))


def settle_invoice(session: Session, preimage: bytes | None, payment_hash: bytes | None) -> None:
    """Takes a payment and says so."""
    from channeld.v1 import invoices_pb2

    request = invoices_pb2.SettleInvoiceRequest(payment_preimage=preimage, payment_hash=payment_hash)
    answer = session.call(session.invoices.Settle, request)
    received = amounts.msat(answer.invoice.received_msat)
    session.out.show(answer, lambda: session.out.line(f"The payment is taken: {received}."))


def _resolve(session: Session, prefix: str) -> bytes:
    from channeld.v1 import invoices_pb2

    if len(prefix) == HASH_HEX:
        return bytes.fromhex(prefix)
    listed = session.call(session.invoices.List, invoices_pb2.ListInvoicesRequest(limit=MOST)).invoices
    found = pick(prefix, listed, lambda invoice: invoice.payment_hash.hex(), "the payment hash")
    if found is None:
        raise CliError(f"There is no invoice {prefix}.", "See `channelctl invoice list`.", NOT_FOUND)
    return found.payment_hash


def _state(invoice: Invoice) -> str:
    from channeld.cli.jsonable import enum_name

    return enum_name(invoice, "state")


def _amount(invoice: Invoice) -> str:
    return amounts.msat(invoice.amount_msat) if invoice.HasField("amount_msat") else "any"


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    invoice = typer.Typer(help="Asking for money: create, list, show, settle, cancel.", no_args_is_help=True)
    command(invoice, "create")(create)
    command(invoice, "add")(create)
    command(invoice, "list")(list_)
    command(invoice, "show")(show)
    command(invoice, "settle")(settle)
    command(invoice, "cancel")(cancel)
    app.add_typer(invoice, name="invoice")
