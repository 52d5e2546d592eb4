"""`channelctl route find`: the way that a payment would take, what each hop costs, and why other ways lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from channeld.cli import amounts
from channeld.cli.command import (
    AMOUNT_HELP,
    OptionGroup,
    any_msat_parser,
    command,
    msat_parser,
    node_parser,
    parser,
)
from channeld.cli.failures import NOT_FOUND, USAGE, CliError
from channeld.cli.graph_commands import SHORT_ALIAS, scid_argument
from channeld.cli.ids import NodeAddress, parse_node_id, scid
from channeld.cli.output import Column
from channeld.cli.payment_options import LastHopOption
from channeld.cli.session import SLOW_TIMEOUT_SECONDS, Session

if TYPE_CHECKING:
    from channeld.v1.graph_pb2 import FindRouteResponse, Route, RouteCandidate, RouteHop


class NodeOrChannel(NamedTuple):
    """What --via and --avoid take; one of the two is given."""

    node_id: bytes | None
    short_channel_id: int | None


def node_or_channel(text: str) -> NodeOrChannel:
    """A node id, or a short channel id. Raises `FormatError`."""
    text = text.strip()
    if len(text) == 66:
        return NodeOrChannel(parse_node_id(text), None)
    return NodeOrChannel(None, scid_argument(text))


either_parser = parser(node_or_channel)


MaxFeeOption = Annotated[
    int | None,
    typer.Option(
        "--max-fee",
        parser=any_msat_parser,
        metavar="AMOUNT",
        help="For all parts together.",
        show_default="as for pay",
    ),
]
MaxCltvOption = Annotated[
    int | None,
    typer.Option("--max-cltv", min=1, metavar="BLOCKS", help="How long it may hang.", show_default="2000"),
]
FinalDeltaOption = Annotated[
    int | None,
    typer.Option(
        "--final-delta", min=0, metavar="BLOCKS", help="Left at the payee.", show_default="the invoice's, or 18"
    ),
]
ViaOption = Annotated[
    list[NodeOrChannel] | None,
    typer.Option(
        "--via",
        parser=either_parser,
        metavar="NODE|SCID",
        help="The first hop goes to this peer, or over this channel. Again for more to choose from.",
        show_default=False,
    ),
]
AvoidOption = Annotated[
    list[NodeOrChannel] | None,
    typer.Option(
        "--avoid",
        parser=either_parser,
        metavar="NODE|SCID",
        help="Not through this node or channel. Again for more.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Limits(OptionGroup):
    """What a way has to keep to."""

    max_fee_msat: MaxFeeOption = None
    max_cltv_blocks: MaxCltvOption = None
    final_delta_blocks: FinalDeltaOption = None
    parts: Annotated[int, typer.Option("--parts", min=1, max=16, help="How many the amount may be split into.")] = 1
    via: ViaOption = None
    last_hop: LastHopOption = None
    avoid: AvoidOption = None


def find(
    session: Session,
    destination: Annotated[
        NodeAddress | None,
        typer.Argument(parser=node_parser, metavar="[DEST]", help="The node to be paid.", show_default=False),
    ] = None,
    amount: Annotated[
        int | None, typer.Argument(parser=msat_parser, metavar="[AMOUNT]", help=AMOUNT_HELP, show_default=False)
    ] = None,
    invoice: Annotated[
        str, typer.Option("--invoice", metavar="BOLT11", help="An invoice instead of DEST.", show_default=False)
    ] = "",
    source: Annotated[
        NodeAddress | None,
        typer.Option(
            "--from",
            parser=node_parser,
            metavar="NODE_ID",
            help="As if this node paid: then all balances are guesses.",
            show_default="this node, with its real balances",
        ),
    ] = None,
    limits: Limits = Limits(),
) -> None:
    """The way a payment would take now, what each hop costs in fee, lock time and probability, and why others lost.

    Nothing is paid. How fee, lock time and risk are weighed against each other stands in docs/routing.md.
    """
    show_routes(session, destination, amount, invoice, source, limits)


def show_routes(
    session: Session,
    destination: NodeAddress | None,
    amount_msat: int | None,
    invoice: str,
    source: NodeAddress | None,
    limits: Limits,
) -> None:
    """Asks and prints. Raises `CliError` if there is no way, after what stands against one was printed."""
    from channeld.v1 import graph_pb2

    if (destination is None) == (not invoice):
        raise CliError(
            "Say who is to be paid: DEST and AMOUNT, or --invoice.", "See `channelctl route find --help`.", USAGE
        )
    if destination is not None and amount_msat is None:
        raise CliError("The amount is missing.", "Write `channelctl route find DEST AMOUNT`.", USAGE)
    via, avoid = limits.via or (), limits.avoid or ()
    request = graph_pb2.FindRouteRequest(
        destination=destination.node_id if destination is not None else b"",
        amount_msat=amount_msat or 0,
        bolt11=invoice,
        source=source.node_id if source is not None else b"",
        max_fee_msat=limits.max_fee_msat,
        max_cltv_blocks=limits.max_cltv_blocks,
        max_parts=limits.parts,
        final_cltv_expiry_delta_blocks=limits.final_delta_blocks,
        via_short_channel_ids=[one.short_channel_id for one in via if one.short_channel_id is not None],
        via_node_ids=[one.node_id for one in via if one.node_id is not None],
        last_hop_node_ids=[one.node_id for one in limits.last_hop or ()],
        avoid_node_ids=[one.node_id for one in avoid if one.node_id is not None],
        avoid_short_channel_ids=[one.short_channel_id for one in avoid if one.short_channel_id is not None],
    )
    answer = session.call(session.graph.FindRoute, request, SLOW_TIMEOUT_SECONDS)
    session.out.show(answer, lambda: Printed(session, answer).all())
    if answer.reason:
        raise CliError(f"There is no way: {answer.reason}.", "", NOT_FOUND)


class Printed:
    """The answer for people."""

    def __init__(self, session: Session, answer: FindRouteResponse) -> None:
        self._out = session.out
        self._answer = answer
        self._aliases = {node.node_id: node.alias for node in answer.nodes}

    def all(self) -> None:
        """Everything."""
        answer = self._answer
        for number, route in enumerate(answer.routes, 1):
            if number > 1:
                self._out.line()
            self._route(route, f"Part {number} of {len(answer.routes)}" if len(answer.routes) > 1 else "Route")
        if len(answer.routes) > 1:
            self._out.line()
            self._out.line(
                f"All {len(answer.routes)} parts: {amounts.msat(answer.amount_msat)} arrive for "
                f"{amounts.msat(answer.total_fee_msat)} of fees, with a probability of {percent(answer.probability)}."
            )
            self._out.line(answer.why_split)
        self._ways("Ways that looked cheaper, and what they lost by", answer.cheaper)
        self._ways("The next best", answer.runners_up)

    def _name(self, node_id: bytes) -> str:
        alias = self._aliases.get(node_id, "")
        if node_id == self._answer.source:
            return "payer" if not alias else f"{_cut(alias)} (payer)"
        return f"{node_id.hex()[:8]}… {_cut(alias)}".rstrip()

    def _route(self, route: Route, title: str) -> None:
        arriving = route.total_amount_msat - route.total_fee_msat
        self._out.line(
            f"{title}: {amounts.msat(arriving)} over {amounts.count(len(route.hops), 'channel')} for "
            f"{amounts.msat(route.total_fee_msat)} of fees ({ppm(route.total_fee_msat, arriving)}), "
            f"{amounts.count(route.total_cltv_blocks, 'block')} at most, probability {percent(route.probability)}",
            "bold",
        )
        rows = [self._hop_row(hop) for hop in route.hops]
        columns = [
            Column("Over"),
            Column("To"),
            Column("Carries", right=True),
            Column("Fee", right=True),
            Column("Lock", right=True),
            Column("Lock cost", right=True),
            Column("Passes", right=True),
            Column("Risk cost", right=True),
        ]
        self._out.table(columns, rows, "")

    def _hop_row(self, hop: RouteHop) -> tuple[str, ...]:
        return (
            f"{scid(hop.short_channel_id)}{' (private)' if hop.is_private else ''}",
            self._name(hop.target),
            amounts.msat(hop.amount_msat),
            amounts.msat(hop.fee_msat),
            amounts.count(hop.lock_blocks, "block") if hop.lock_blocks else "",
            cost(hop.lock_cost_msat),
            percent(hop.probability),
            cost(hop.improbability_cost_msat),
        )

    def _ways(self, title: str, ways: Sequence[RouteCandidate]) -> None:
        if not ways:
            return
        self._out.line()
        self._out.line(f"{title}:", "bold")
        rows = [
            (
                " > ".join(scid(hop.short_channel_id) for hop in way.hops),
                amounts.msat(way.fee_msat),
                amounts.count(way.lock_blocks, "block"),
                percent(way.probability),
                cost(way.cost_msat),
                self._explained(way),
            )
            for way in ways
        ]
        columns = [
            Column("Way", fold=True),
            Column("Fee", right=True),
            Column("Lock", right=True),
            Column("Passes", right=True),
            Column("In all", right=True),
            Column("Because", fold=True),
        ]
        self._out.table(columns, rows, "")

    def _explained(self, way: RouteCandidate) -> str:
        through = [_cut(self._aliases[hop.target]) for hop in way.hops[:-1] if self._aliases.get(hop.target)]
        return f"{way.reason} (through {', '.join(through)})" if through else way.reason


def percent(probability: float) -> str:
    """`99.5 %`; never 100 or 0 for what is not certain."""
    if 0 < probability < 0.001:
        return "< 0.1 %"
    if 0.999 < probability < 1:
        return "> 99.9 %"
    return f"{probability:.1%}".replace("%", " %").replace(".0 %", " %")


def cost(msat: float) -> str:
    """What lock time or risk is worth; nothing where it is nothing."""
    return "" if msat < 0.5 else f"{msat / 1000:,.3f} sat"


def ppm(fee_msat: int, amount_msat: int) -> str:
    """A fee in millionths of the amount."""
    return f"{fee_msat * 1_000_000 / amount_msat:,.0f} ppm" if amount_msat else "0 ppm"


def _cut(alias: str) -> str:
    return alias if len(alias) <= SHORT_ALIAS else f"{alias[: SHORT_ALIAS - 1]}…"


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    route = typer.Typer(help="Ways through the network: find.", no_args_is_help=True)
    command(route, "find")(find)
    app.add_typer(route, name="route")
