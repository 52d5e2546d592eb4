"""`channelctl keysend`, `rebalance` and `probe`: payments without an invoice, and what they would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts, payment_follow
from channeld.cli.channel_commands import CHANNEL_HELP, resolve
from channeld.cli.command import AMOUNT_HELP, KeyOption, YesFlag, command, msat_parser, node_parser, parser
from channeld.cli.failures import FAILED, NOT_KNOWN_YET, USAGE, CliError, as_sentence
from channeld.cli.ids import NodeAddress, parse_node_id
from channeld.cli.payment_commands import send_payment
from channeld.cli.payment_options import Limits, PartLimits, StreamFlag, WayLimits
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.payments_pb2 import Payment

NODE_HEX = 66


def parse_record(text: str) -> tuple[int, bytes]:
    """`65537=0a1b`. Raises `FormatError`."""
    number, equals, value = text.partition("=")
    try:
        if not equals or not number.strip().isdecimal():
            raise ValueError
        return int(number), bytes.fromhex(value)
    except ValueError:
        raise amounts.FormatError(f"{text!r} is not a record; write TYPE=HEX, as 65537=0a1b.") from None


record_parser = parser(parse_record)
AmountArgument = Annotated[
    int, typer.Argument(parser=msat_parser, metavar="AMOUNT", help=AMOUNT_HELP, show_default=False)
]
RecordOption = Annotated[
    list[object] | None,
    typer.Option(
        "--record",
        parser=record_parser,
        metavar="TYPE=HEX",
        help="What to tell the payee: a type from 65536 on, and its value. Again for more.",
        show_default=False,
    ),
]


def keysend(
    session: Session,
    node: Annotated[
        NodeAddress, typer.Argument(parser=node_parser, metavar="NODE_ID", help="Who gets it.", show_default=False)
    ],
    amount: AmountArgument,
    record: RecordOption = None,
    limits: WayLimits = WayLimits(),
    stream: StreamFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Pays a node that did not ask for it."""
    send_keysend(session, node.node_id, amount, record or [], limits, yes, idempotency_key, stream)


def send_keysend(
    session: Session,
    node_id: bytes,
    amount_msat: int,
    records: list[object],
    limits: WayLimits,
    yes: bool,
    key: str,
    stream: bool,
) -> None:
    """Shows what will be paid, asks, pays. Raises `CliError` unless it succeeded."""
    from channeld.v1 import invoices_pb2, payments_pb2

    pairs = [pair for pair in records if isinstance(pair, tuple)]
    request = payments_pb2.KeysendRequest(
        node_id=node_id,
        amount_msat=amount_msat,
        custom_records=[invoices_pb2.CustomRecord(type=number, value=value) for number, value in pairs],
        idempotency_key=key,
    )
    session.out.note(f"Pay {amounts.msat(amount_msat)} to {node_id.hex()}, without an invoice.", "")
    order = payments_pb2.SendPaymentRequest(keysend=request)
    send_payment(session, order, limits, amount_msat, yes, stream)


def rebalance(
    session: Session,
    amount: AmountArgument,
    outgoing: Annotated[
        list[str],
        typer.Option(
            "--out",
            metavar="CHANNEL",
            help=f"It leaves by this channel. {CHANNEL_HELP} Again for more to choose from.",
            show_default=False,
        ),
    ],
    incoming: Annotated[
        list[str],
        typer.Option(
            "--in",
            metavar="CHANNEL",
            help="It comes back over this one. Again for more to choose from.",
            show_default=False,
        ),
    ],
    limits: PartLimits = PartLimits(),
    stream: StreamFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Moves money from some channels to others: a payment to ourselves, in parts where one does not do. Costs the fees
    on the way; if not all of it can be moved, nothing is."""
    from channeld.v1 import payments_pb2

    request = payments_pb2.RebalanceRequest(
        amount_msat=amount,
        outgoing_channel_ids=[resolve(session, channel) for channel in outgoing],
        incoming_channel_ids=[resolve(session, channel) for channel in incoming],
        idempotency_key=idempotency_key,
    )
    session.out.note(f"Move {amounts.msat(amount)} from {', '.join(outgoing)} to {', '.join(incoming)}.", "")
    order = payments_pb2.SendPaymentRequest(rebalance=request)
    send_payment(session, order, limits, amount, yes, stream)


def probe(
    session: Session,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A node id, or an invoice.", show_default=False)],
    amount: Annotated[
        int | None,
        typer.Argument(
            parser=msat_parser,
            metavar="[AMOUNT]",
            help=f"{AMOUNT_HELP} Needed unless an invoice says it.",
            show_default=False,
        ),
    ] = None,
    limits: Limits = Limits(),
    stream: StreamFlag = False,
) -> None:
    """Would a payment arrive, and what would it cost? Nothing is paid: what is sent nobody can settle."""
    run_probe(session, destination, amount, limits, stream)


def run_probe(session: Session, destination: str, amount_msat: int | None, limits: Limits, stream: bool) -> None:
    """Raises `CliError` unless a payment would arrive."""
    from channeld.v1 import payments_pb2

    text = destination.strip()
    request = payments_pb2.ProbeRequest(amount_msat=amount_msat)
    if len(text) == NODE_HEX or "@" in text:
        request.node_id = parse_node_id(text.partition("@")[0])
        if amount_msat is None:
            raise CliError("The amount is missing.", "Write it after the node id.", USAGE)
    else:
        request.bolt11 = text
    limits.put(session, request, limits.max_fee_msat)
    if session.out.as_json and not stream:
        request.timeout_seconds = float(limits.timeout_seconds)
        answer = session.call(session.payments.Probe, request, limits.timeout_seconds + 90.0)
        session.out.show(answer, lambda: None)
        _check(answer.probe)
        return
    order = payments_pb2.SendPaymentRequest(probe=request)
    found = payment_follow.send(session, order, limits.timeout_seconds, stream, "probe")
    _check(found)
    if not session.out.as_json:
        whole = f"{amounts.msat(found.amount_msat)} would arrive, for a fee of {amounts.msat(found.fee_msat)}"
        session.out.line(f"{whole}, in {found.parts} parts." if found.parts > 1 else f"{whole}.", "green")


def _check(found: Payment) -> None:
    from channeld.v1 import payments_pb2

    if found.state == payments_pb2.PAYMENT_STATE_FAILED:
        some = f"{amounts.msat(found.arriving_msat)} of it would arrive." if found.arriving_msat else ""
        raise CliError(as_sentence(f"It would not arrive: {found.failure}"), some, FAILED)
    if found.state != payments_pb2.PAYMENT_STATE_SUCCEEDED:
        sentence = "The probe has not come back yet: somebody holds it."
        raise CliError(sentence, "Take a longer --timeout, or another amount.", NOT_KNOWN_YET)


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    command(app, "keysend")(keysend)
    command(app, "rebalance")(rebalance)
    command(app, "probe")(probe)
