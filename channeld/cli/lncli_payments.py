"""The paying commands that users of lncli type. They do what ours do."""

from __future__ import annotations

from typing import Annotated

import typer

from channeld.cli import amounts, payment_commands, send_commands
from channeld.cli.command import KeyOption, command, duration_parser, msat_parser, node_parser, parser
from channeld.cli.failures import USAGE, CliError
from channeld.cli.ids import NodeAddress
from channeld.cli.lncli import PANEL, ForceFlag, HashFlag, HashText, InvoiceFlag, InvoiceText, either
from channeld.cli.payment_options import FEE_LIMIT_DEFAULT, FEE_LIMIT_HELP, TIMEOUT_SECONDS, Limits
from channeld.cli.session import Session

_any_msat = parser(amounts.parse_msat)

AmtFlag = Annotated[int | None, typer.Option("--amt", parser=msat_parser, metavar="AMT", show_default=False)]
FeeLimit = Annotated[
    int | None,
    typer.Option(
        "--fee_limit",
        "--fee-limit",
        parser=_any_msat,
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
LastHop = Annotated[
    NodeAddress | None,
    typer.Option("--last_hop", "--last-hop", parser=node_parser, metavar="KEY", show_default=False),
]


def _limits(
    fee_limit: int | None,
    timeout: int,
    cltv_limit: int | None,
    max_parts: int | None,
    outgoing: list[str] | None,
    last_hop: NodeAddress | None,
) -> Limits:
    channels = [_channel(text) for text in outgoing or ()]
    return Limits(fee_limit, timeout, cltv_limit, max_parts, channels, (last_hop,) if last_hop else ())


def _channel(text: str) -> str:
    """lnd writes a short channel id as one number."""
    if not text.isdecimal() or not 1 << 40 <= int(text) < 1 << 64:
        return text
    number = int(text)
    return f"{number >> 40}x{number >> 16 & 0xFFFFFF}x{number & 0xFFFF}"


def _one_fee_limit(fee_limit: int | None, fee_limit_percent: float | None) -> None:
    if fee_limit is not None and fee_limit_percent is not None:
        raise CliError("Give --fee_limit or --fee_limit_percent, not both.", "", USAGE)


def payinvoice(
    session: Session,
    pay_req_: InvoiceText = None,
    pay_req: InvoiceFlag = None,
    amt: AmtFlag = None,
    fee_limit: FeeLimit = None,
    fee_limit_percent: FeeLimitPercent = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    cltv_limit: CltvLimit = None,
    max_parts: MaxParts = None,
    outgoing_chan_id: OutgoingChannel = None,
    last_hop: LastHop = None,
    force: ForceFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `pay`."""
    _one_fee_limit(fee_limit, fee_limit_percent)
    payment_commands.pay_invoice(
        session,
        either(pay_req_, pay_req, "The invoice"),
        amt,
        _limits(fee_limit, timeout, cltv_limit, max_parts, outgoing_chan_id, last_hop),
        force,
        idempotency_key,
        fee_limit_percent=fee_limit_percent,
    )


def sendpayment(
    session: Session,
    dest_: Annotated[
        NodeAddress | None, typer.Argument(parser=node_parser, metavar="[DEST]", show_default=False)
    ] = None,
    amt_: Annotated[int | None, typer.Argument(parser=msat_parser, metavar="[AMT]", show_default=False)] = None,
    dest: Annotated[
        NodeAddress | None, typer.Option("--dest", "-d", parser=node_parser, metavar="KEY", show_default=False)
    ] = None,
    amt: AmtFlag = None,
    pay_req: InvoiceFlag = None,
    keysend: Annotated[bool, typer.Option("--keysend", help="Without an invoice.")] = False,
    data: Annotated[
        str, typer.Option("--data", metavar="TYPE=HEX,...", help="What to tell the payee.", show_default=False)
    ] = "",
    fee_limit: FeeLimit = None,
    fee_limit_percent: FeeLimitPercent = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    cltv_limit: CltvLimit = None,
    max_parts: MaxParts = None,
    outgoing_chan_id: OutgoingChannel = None,
    last_hop: LastHop = None,
    force: ForceFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `pay` with --pay_req, as `keysend` with --keysend."""
    _one_fee_limit(fee_limit, fee_limit_percent)
    limits = _limits(fee_limit, timeout, cltv_limit, max_parts, outgoing_chan_id, last_hop)
    if pay_req is not None:
        if keysend or dest_ is not None or dest is not None:
            raise CliError("Give --pay_req or a node and --keysend, not both.", "", USAGE)
        payment_commands.pay_invoice(
            session, pay_req, amt, limits, force, idempotency_key, fee_limit_percent=fee_limit_percent
        )
        return
    if not keysend:
        raise CliError("A payment to a node needs --keysend.", "With an invoice, write --pay_req.", USAGE)
    amount_msat = either(amt_, amt, "The amount")
    if fee_limit_percent is not None:
        limits = limits._replace(max_fee_msat=int(amount_msat * fee_limit_percent / 100))
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
    amt: AmtFlag = None,
    pay_req: InvoiceFlag = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """As `probe`."""
    where = either(dest.node_id.hex() if dest is not None else None, pay_req, "The destination")
    send_commands.run_probe(session, where, amt, Limits(None, timeout), stream=False)


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
