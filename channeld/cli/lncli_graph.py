"""The commands about the network and our prices that users of lncli type. They do what ours do."""

from __future__ import annotations

import time
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from channeld.cli import amounts, forward_commands, graph_commands, route_commands
from channeld.cli.amounts import FormatError
from channeld.cli.command import any_msat_parser, command, node_parser, parser
from channeld.cli.failures import USAGE, CliError
from channeld.cli.ids import NodeAddress
from channeld.cli.lncli import PANEL, AmountFlag, AmountText, DestinationText, LastHopFlag, either
from channeld.cli.route_commands import Limits, NodeOrChannel
from channeld.cli.session import Session

MILLION = 1_000_000
DAY_SECONDS = 86_400
MOST_FORWARDS = 10_000

NodeText = Annotated[NodeAddress | None, typer.Argument(parser=node_parser, metavar="[PUB_KEY]", show_default=False)]
NodeFlag = Annotated[
    NodeAddress | None, typer.Option("--pub_key", "--pub-key", parser=node_parser, metavar="KEY", show_default=False)
]


def getnodeinfo(
    session: Session,
    pub_key_: NodeText = None,
    pub_key: NodeFlag = None,
    include_channels: Annotated[bool, typer.Option("--include_channels", "--include-channels")] = False,
) -> None:
    """As `graph node`."""
    graph_commands.show_node(session, either(pub_key_, pub_key, "The node").node_id, include_channels)


def getchaninfo(
    session: Session,
    chan_id_: Annotated[
        int | None, typer.Argument(parser=graph_commands.scid_parser, metavar="[CHAN_ID]", show_default=False)
    ] = None,
    chan_id: Annotated[
        int | None,
        typer.Option(
            "--chan_id", "--chan-id", parser=graph_commands.scid_parser, metavar="CHAN_ID", show_default=False
        ),
    ] = None,
) -> None:
    """As `graph channel`."""
    graph_commands.channel(session, either(chan_id_, chan_id, "The channel"))


def queryroutes(
    session: Session,
    dest_: DestinationText = None,
    amt_: AmountText = None,
    dest: Annotated[
        NodeAddress | None, typer.Option("--dest", parser=node_parser, metavar="DEST", show_default=False)
    ] = None,
    amt: AmountFlag = None,
    fee_limit: Annotated[
        int | None,
        typer.Option("--fee_limit", "--fee-limit", parser=any_msat_parser, metavar="AMT", show_default=False),
    ] = None,
    cltv_limit: Annotated[
        int | None, typer.Option("--cltv_limit", "--cltv-limit", min=1, metavar="BLOCKS", show_default=False)
    ] = None,
    final_cltv_delta: Annotated[
        int | None,
        typer.Option("--final_cltv_delta", "--final-cltv-delta", min=0, metavar="BLOCKS", show_default=False),
    ] = None,
    outgoing_chan_id: Annotated[
        list[int] | None,
        typer.Option(
            "--outgoing_chan_id",
            "--outgoing-chan-id",
            parser=graph_commands.scid_parser,
            metavar="CHAN_ID",
            show_default=False,
        ),
    ] = None,
    last_hop: LastHopFlag = None,
    ignore_node: Annotated[
        list[NodeAddress] | None,
        typer.Option("--ignore_node", "--ignore-node", parser=node_parser, metavar="KEY", show_default=False),
    ] = None,
    source_pub_key: Annotated[
        NodeAddress | None,
        typer.Option("--source_pub_key", "--source-pub-key", parser=node_parser, metavar="KEY", show_default=False),
    ] = None,
) -> None:
    """As `route find`."""
    limits = Limits(
        max_fee_msat=fee_limit,
        max_cltv_blocks=cltv_limit,
        final_delta_blocks=final_cltv_delta,
        via=[NodeOrChannel(None, scid) for scid in outgoing_chan_id or ()],
        avoid=[NodeOrChannel(node.node_id, None) for node in ignore_node or ()],
        last_hop=[last_hop] if last_hop is not None else [],
    )
    target = either(dest_, dest, "The destination")
    route_commands.show_routes(session, target, either(amt_, amt, "The amount"), "", source_pub_key, limits)


def parse_fee_rate(text: str) -> int:
    """Millionths from a share of the amount, 0.000001 for one. Raises `FormatError`."""
    try:
        millionths = Decimal(text) * MILLION
    except InvalidOperation:
        raise FormatError(f"{text!r} is not a fee rate; write 0.000001 for one millionth of the amount.") from None
    if not millionths.is_finite() or millionths < 0 or millionths != int(millionths):
        raise FormatError(f"{text!r} is not a fee rate: it is not a whole number of millionths.")
    return int(millionths)


_fee_rate = parser(parse_fee_rate)


def updatechanpolicy(
    session: Session,
    base_fee_msat_: Annotated[int | None, typer.Argument(metavar="[BASE_FEE_MSAT]", min=0, show_default=False)] = None,
    fee_rate_: Annotated[int | None, typer.Argument(parser=_fee_rate, metavar="[FEE_RATE]", show_default=False)] = None,
    time_lock_delta_: Annotated[
        int | None, typer.Argument(metavar="[TIME_LOCK_DELTA]", min=0, show_default=False)
    ] = None,
    chan_point_: Annotated[str | None, typer.Argument(metavar="[CHAN_POINT]", show_default=False)] = None,
    base_fee_msat: Annotated[
        int | None, typer.Option("--base_fee_msat", "--base-fee-msat", min=0, show_default=False)
    ] = None,
    fee_rate: Annotated[
        int | None, typer.Option("--fee_rate", "--fee-rate", parser=_fee_rate, metavar="RATE", show_default=False)
    ] = None,
    fee_rate_ppm: Annotated[
        int | None, typer.Option("--fee_rate_ppm", "--fee-rate-ppm", min=0, show_default=False)
    ] = None,
    time_lock_delta: Annotated[
        int | None, typer.Option("--time_lock_delta", "--time-lock-delta", min=0, show_default=False)
    ] = None,
    min_htlc_msat: Annotated[
        int | None, typer.Option("--min_htlc_msat", "--min-htlc-msat", min=0, show_default=False)
    ] = None,
    max_htlc_msat: Annotated[
        int | None, typer.Option("--max_htlc_msat", "--max-htlc-msat", min=0, show_default=False)
    ] = None,
    chan_point: Annotated[
        str | None,
        typer.Option("--chan_point", "--chan-point", metavar="TXID:N", help="Without it all.", show_default=False),
    ] = None,
) -> None:
    """As `policy set`."""

    def one(*given: int | None, what: str) -> int | None:
        found = [value for value in given if value is not None]
        if len(found) > 1:
            raise CliError(f"{what} is given more than once.", "", USAGE)
        return found[0] if found else None

    if chan_point_ is not None and chan_point is not None:
        raise CliError("The channel is given twice, as an argument and as a flag.", "", USAGE)
    forward_commands.set_(
        session,
        chan_point_ or chan_point or forward_commands.ALL,
        one(base_fee_msat_, base_fee_msat, what="The base fee"),
        one(fee_rate_, fee_rate, fee_rate_ppm, what="The fee rate"),
        one(time_lock_delta_, time_lock_delta, what="The time lock delta"),
        min_htlc_msat,
        max_htlc_msat,
    )


def feereport(session: Session) -> None:
    """What is asked for forwarding over each channel, and what was earned lately."""
    from channeld.cli.jsonable import to_jsonable
    from channeld.v1 import channels_pb2

    policies = session.call(session.channels.SetPolicy, channels_pb2.SetPolicyRequest())
    request = channels_pb2.ListForwardsRequest(limit=MOST_FORWARDS)
    forwards = session.call(session.channels.ListForwards, request).forwards
    now = time.time()
    earned = {
        name: sum(forward.fee_msat for forward in forwards if forward.settled_seconds > now - days * DAY_SECONDS)
        for name, days in (("day", 1), ("week", 7), ("month", 30))
    }
    if session.out.as_json:
        session.out.json_line(
            {**to_jsonable(policies), **{f"{name}_fee_sum_msat": fee_msat for name, fee_msat in earned.items()}}
        )
        return
    forward_commands.show_policies(session, policies)
    session.out.line(
        "Earned: " + ", ".join(f"{amounts.msat(fee_msat)} in a {name}" for name, fee_msat in earned.items()) + "."
    )


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for name, function in (
        ("describegraph", graph_commands.describe),
        ("getnetworkinfo", graph_commands.info),
        ("getnodeinfo", getnodeinfo),
        ("getchaninfo", getchaninfo),
        ("queryroutes", queryroutes),
        ("updatechanpolicy", updatechanpolicy),
        ("feereport", feereport),
    ):
        command(app, name, panel=PANEL)(function)
