"""The paying commands that users of lncli type. They do what ours do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from channeld.bolt.primitives import format_short_channel_id
from channeld.cli import payment_commands, send_commands
from channeld.cli.command import KeyOption, OptionGroup, any_msat_parser, command, duration_parser, node_parser
from channeld.cli.failures import USAGE, CliError
from channeld.cli.ids import NodeAddress
from channeld.cli.lncli import (
    PANEL,
    AmountFlag,
    AmountText,
    DestinationText,
    ForceFlag,
    HashFlag,
    HashText,
    InvoiceFlag,
    InvoiceText,
    LastHopFlag,
    either,
)
from channeld.cli.payment_options import FEE_LIMIT_DEFAULT, FEE_LIMIT_HELP, TIMEOUT_SECONDS, Limits
from channeld.cli.session import Session

FeeLimit = Annotated[
    int | None,
    typer.Option(
        "--fee_limit",
        "--fee-limit",
        parser=any_msat_parser,
        metavar="AMT",
        help=FEE_LIMIT_HELP,
        show_default=FEE_LIMIT_DEFAULT,
    ),
]
FeeLimitPercent = Annotated[
    float | None, typer.Option("--fee_limit_percent", "--fee-limit-percent", min=0, max=100, show_default=False)
]
Timeout = Annotated[int, typer.Option("--timeout", parser=duration_parser, metavar="TIME", show_default="60s")]
CltvLimit = Annotated[
    int | None, typer.Option("--cltv_limit", "--cltv-limit", min=1, metavar="BLOCKS", show_default="2000")
]
MaxParts = Annotated[int | None, typer.Option("--max_parts", "--max-parts", min=1, show_default="16")]
OutgoingChannel = Annotated[
    list[str] | None,
    typer.Option(
        "--outgoing_chan_id",
        "--outgoing-chan-id",
        metavar="CHANNEL",
        help="Ours or lnd's number of it. Again for more to choose from.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class LndLimits(OptionGroup):
    """lncli's options for what a payment may cost and which way it may go."""

    fee_limit: FeeLimit = None
    fee_limit_percent: FeeLimitPercent = None
    timeout: Timeout = TIMEOUT_SECONDS
    cltv_limit: CltvLimit = None
    max_parts: MaxParts = None
    outgoing_chan_id: OutgoingChannel = None
    last_hop: LastHopFlag = None

    def limits(self) -> Limits:
        """As ours, without `fee_limit_percent`. Raises `CliError`."""
        if self.fee_limit is not None and self.fee_limit_percent is not None:
            raise CliError("Give --fee_limit or --fee_limit_percent, not both.", "", USAGE)
        return Limits(
            max_fee_msat=self.fee_limit,
            timeout_seconds=self.timeout,
            max_cltv_blocks=self.cltv_limit,
            max_parts=self.max_parts,
            out=[_channel(text) for text in self.outgoing_chan_id or ()],
            last_hops=[self.last_hop] if self.last_hop is not None else [],
        )


def _channel(text: str) -> str:
    """lnd writes a short channel id as one number."""
    if not text.isdecimal() or not 1 << 40 <= int(text) < 1 << 64:
        return text
    return format_short_channel_id(int(text))


def payinvoice(
    session: Session,
    pay_req_: InvoiceText = None,
    pay_req: InvoiceFlag = None,
    amt: AmountFlag = None,
    options: LndLimits = LndLimits(),
    force: ForceFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `pay`."""
    limits = options.limits()
    invoice = either(pay_req_, pay_req, "The invoice")
    payment_commands.pay_invoice(
        session, invoice, amt, limits, force, idempotency_key, fee_limit_percent=options.fee_limit_percent
    )


def sendpayment(
    session: Session,
    dest_: DestinationText = None,
    amt_: AmountText = None,
    dest: Annotated[
        NodeAddress | None, typer.Option("--dest", "-d", parser=node_parser, metavar="KEY", show_default=False)
    ] = None,
    amt: AmountFlag = None,
    pay_req: InvoiceFlag = None,
    keysend: Annotated[bool, typer.Option("--keysend", help="Without an invoice.")] = False,
    data: Annotated[
        str, typer.Option("--data", metavar="TYPE=HEX,...", help="What to tell the payee.", show_default=False)
    ] = "",
    options: LndLimits = LndLimits(),
    force: ForceFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `pay` with --pay_req, as `keysend` with --keysend."""
    limits = options.limits()
    if pay_req is not None:
        if keysend or dest_ is not None or dest is not None:
            raise CliError("Give --pay_req or a node and --keysend, not both.", "", USAGE)
        payment_commands.pay_invoice(
            session, pay_req, amt, limits, force, idempotency_key, fee_limit_percent=options.fee_limit_percent
        )
        return
    if not keysend:
        raise CliError("A payment to a node needs --keysend.", "With an invoice, write --pay_req.", USAGE)
    amount_msat = either(amt_, amt, "The amount")
    if options.fee_limit_percent is not None:
        limits = replace(limits, max_fee_msat=int(amount_msat * options.fee_limit_percent / 100))
    records: list[object] = [send_commands.parse_record(text) for text in data.split(",") if text]
    node = either(dest_, dest, "The destination")
    send_commands.send_keysend(
        session, node.node_id, amount_msat, records, limits, force, idempotency_key, stream=False
    )


def estimateroutefee(
    session: Session,
    dest: Annotated[
        NodeAddress | None, typer.Option("--dest", parser=node_parser, metavar="KEY", show_default=False)
    ] = None,
    amt: AmountFlag = None,
    pay_req: InvoiceFlag = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """As `probe`."""
    where = either(dest.node_id.hex() if dest is not None else None, pay_req, "The destination")
    send_commands.run_probe(session, where, amt, Limits(timeout_seconds=timeout), stream=False)


def decodepayreq(session: Session, pay_req_: InvoiceText = None, pay_req: InvoiceFlag = None) -> None:
    """As `decode`."""
    payment_commands.decode(session, either(pay_req_, pay_req, "The invoice"))


def listpayments(
    session: Session,
    limit: Annotated[int, typer.Option("--max_payments", "--max-payments", min=1, max=10_000)] = 100,
    offset: Annotated[int, typer.Option("--index_offset", "--index-offset", min=0)] = 0,
) -> None:
    """As `payments list`."""
    payment_commands.list_(session, limit, offset)


def trackpayment(session: Session, rhash_: HashText = None, rhash: HashFlag = None) -> None:
    """As `payments track`."""
    payment_commands.track(session, either(rhash_, rhash, "The payment hash"))


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for name, function in (
        ("sendpayment", sendpayment),
        ("payinvoice", payinvoice),
        ("decodepayreq", decodepayreq),
        ("listpayments", listpayments),
        ("trackpayment", trackpayment),
        ("estimateroutefee", estimateroutefee),
    ):
        command(app, name, panel=PANEL)(function)
