"""`channelctl graph`: the public network as the daemon knows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from channeld.cli import amounts
from channeld.cli.command import command, node_parser, parser
from channeld.cli.failures import USAGE, CliError
from channeld.cli.ids import NodeAddress, parse_scid, scid
from channeld.cli.output import Column, Id, printable
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.graph_pb2 import (
        GetGraphChannelResponse,
        GetGraphInfoResponse,
        GetGraphNodeResponse,
        GraphChannel,
        GraphNode,
        GraphPage,
        GraphPolicy,
    )

SHORT_ALIAS = 24


def scid_argument(text: str) -> int:
    """`123x4x5`, `123:4:5`, or the number itself, as lncli writes it. Raises `FormatError`."""
    found = parse_scid(text)
    if found is None and text.strip().isdecimal() and int(text) < 2**63:
        found = int(text)
    if found is None:
        raise amounts.FormatError(f"{text!r} is not a short channel id; write it as 800000x123x0.")
    return found


scid_parser = parser(scid_argument)
NodeArgument = Annotated[
    NodeAddress, typer.Argument(parser=node_parser, metavar="NODE_ID", help="66 hex characters.", show_default=False)
]
ScidArgument = Annotated[
    int, typer.Argument(parser=scid_parser, metavar="SCID", help="As 800000x123x0.", show_default=False)
]


def pages(session: Session, nodes: bool = True, channels: bool = True) -> Iterator[GraphPage]:
    """The whole public network, some at a time."""
    from channeld.v1 import graph_pb2

    request = graph_pb2.DescribeGraphRequest(without_nodes=not nodes, without_channels=not channels)
    return session.stream(session.graph.Describe, request)


def describe(
    session: Session,
    nodes: Annotated[bool, typer.Option("--nodes", help="The nodes alone.")] = False,
    channels: Annotated[bool, typer.Option("--channels", help="The channels alone.")] = False,
) -> None:
    """The whole public network: every node and every channel. Large: read it with a pager, or take --json."""
    want_nodes, want_channels = nodes or not channels, channels or not nodes
    if session.out.as_json:
        _describe_as_json(pages(session, want_nodes, want_channels))
        return
    found_nodes = found_channels = 0
    for page in pages(session, want_nodes, want_channels):
        # Line by line: a table of everything would have to be held, and measured, before its first line is seen.
        for text in (*map(_node_line, page.nodes), *map(_channel_line, page.channels)):
            print(printable(text))
        found_nodes += len(page.nodes)
        found_channels += len(page.channels)
    parts = [amounts.count(found_nodes, "node")] * want_nodes + [
        amounts.count(found_channels, "channel")
    ] * want_channels
    session.out.note(" and ".join(parts), "")


def _describe_as_json(network: Iterator[GraphPage]) -> None:
    """One document, written as it comes: nodes, then channels, each on a line of its own."""
    from channeld.cli.jsonable import to_jsonable

    print('{"nodes": [', end="")
    between, in_channels = "\n", False
    for page in network:
        rows: list[Any] = [*page.nodes, *page.channels]
        if page.channels and not in_channels:
            print('\n], "channels": [', end="")
            between, in_channels = "\n", True
        for row in rows:
            print(between, json.dumps(to_jsonable(row)), sep="", end="")
            between = ",\n"
    print("\n]}" if in_channels else '\n], "channels": []}')


def _node_line(node: GraphNode) -> str:
    return (
        f"node {node.node_id.hex()} {amounts.count(node.num_channels, 'channel')}, {amounts.sat(node.capacity_sat)}"
        f"{f', {node.alias}' if node.alias else ''}{' (this node)' if node.is_own else ''}"
    )


def _channel_line(channel: GraphChannel) -> str:
    sides = (("->", _optional(channel, "policy_1")), ("<-", _optional(channel, "policy_2")))
    asked = "; ".join(f"{arrow} {_policy_text(policy)}" for arrow, policy in sides)
    return (
        f"channel {scid(channel.short_channel_id)} {channel.node_id_1.hex()} {channel.node_id_2.hex()} "
        f"{amounts.sat(channel.capacity_sat)} {asked}"
    )


def _optional(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _policy_text(policy: GraphPolicy | None) -> str:
    if policy is None:
        return "unknown"
    text = f"{amounts.msat(policy.fee_base_msat)} + {policy.fee_proportional_millionths} ppm"
    return text if policy.usable else f"{text}, not usable"


def info(session: Session) -> None:
    """The public network in a few numbers."""
    from channeld.v1 import graph_pb2

    answer = session.call(session.graph.GetInfo, graph_pb2.GetGraphInfoRequest())
    session.out.show(answer, lambda: _show_info(session, answer))


def _show_info(session: Session, found: GetGraphInfoResponse) -> None:
    synced = "with the network" if found.is_synced else "not yet: peers are still being asked"
    session.out.fields(
        [
            ("Nodes", f"{found.num_nodes:,}, of which {found.num_announced_nodes:,} have announced themselves"),
            ("Channels", f"{found.num_channels:,}, of which {found.num_unusable_channels:,} cannot be used now"),
            ("Capacity", f"{amounts.sat(found.total_capacity_sat)} in all"),
            (
                "A channel",
                f"{amounts.sat(found.median_channel_sat)} in the middle, from {amounts.sat(found.min_channel_sat)} "
                f"to {amounts.sat(found.max_channel_sat)}",
            ),
            ("Most channels", f"{found.max_node_channels:,} of one node"),
            (
                "Usual policy",
                f"{amounts.msat(found.median_fee_base_msat)} + {found.median_fee_proportional_millionths} ppm, "
                f"{found.median_cltv_expiry_delta_blocks} blocks (medians)",
            ),
            ("Ours", f"{found.num_own_public_channels} public, {found.num_own_private_channels} private"),
            ("Learnt", f"of {amounts.count(found.num_scored_channels, 'channel')} from payments"),
            ("In step", synced),
            ("Under way", f"{found.num_queued:,} messages" if found.num_queued else ""),
            ("Stored", f"{found.store_bytes / 1e6:,.1f} MB"),
        ]
    )


def node(session: Session, node_id: NodeArgument) -> None:
    """One node of the public network, and its channels."""
    show_node(session, node_id.node_id, with_channels=True)


def show_node(session: Session, node_id: bytes, with_channels: bool) -> None:
    """Asks for a node and prints it."""
    from channeld.v1 import graph_pb2

    request = graph_pb2.GetGraphNodeRequest(node_id=node_id, without_channels=not with_channels)
    answer = session.call(session.graph.GetNode, request)
    session.out.show(answer, lambda: _print_node(session, answer, with_channels))


def _print_node(session: Session, answer: GetGraphNodeResponse, with_channels: bool) -> None:
    found = answer.node
    announced = amounts.point_in_time(found.announced_seconds) if found.HasField("announced_seconds") else "never"
    session.out.fields(
        [
            ("Node", f"{found.node_id.hex()}{' (this node)' if found.is_own else ''}"),
            ("Alias", found.alias),
            ("Color", f"#{found.color}" if found.color else ""),
            ("Addresses", list(found.addresses)),
            ("Features", ", ".join(found.features)),
            ("Announced", announced),
            ("Channels", f"{found.num_channels:,}"),
            ("Capacity", amounts.sat(found.capacity_sat)),
        ]
    )
    if with_channels:
        session.out.line()
        _table_of_channels(session, found.node_id, list(answer.channels))


def _table_of_channels(session: Session, node_id: bytes, channels: list[GraphChannel]) -> None:
    """What the node asks, and what its peers ask for the way to it."""
    rows = []
    for channel in channels:
        is_first = channel.node_id_1 == node_id
        peer = channel.node_id_2 if is_first else channel.node_id_1
        own, others = ("policy_1", "policy_2") if is_first else ("policy_2", "policy_1")
        rows.append(
            (
                scid(channel.short_channel_id),
                Id(peer.hex()),
                amounts.sat(channel.capacity_sat),
                _policy_text(_optional(channel, own)),
                _policy_text(_optional(channel, others)),
            )
        )
    columns = [
        Column("Channel"),
        Column("With"),
        Column("Capacity", right=True),
        Column("Outward"),
        Column("Inward"),
    ]
    session.out.table(columns, rows, "It has no public channel.")


def channel(session: Session, short_channel_id: ScidArgument) -> None:
    """One public channel: both sides' terms, and what payments have taught of its balance."""
    from channeld.v1 import graph_pb2

    request = graph_pb2.GetGraphChannelRequest(short_channel_id=short_channel_id)
    answer = session.call(session.graph.GetChannel, request)
    session.out.show(answer, lambda: _show_channel(session, answer))


def _show_channel(session: Session, answer: GetGraphChannelResponse) -> None:
    found = answer.channel
    spent = f"in block {found.spent_height:,}; it is about to be forgotten" if found.HasField("spent_height") else ""
    session.out.fields(
        [
            ("Channel", f"{scid(found.short_channel_id)}{' (ours)' if found.is_own else ''}"),
            ("Capacity", amounts.sat(found.capacity_sat)),
            ("Spent", spent),
        ]
    )
    session.out.line()
    rows: list[tuple[str | Id, ...]] = []
    for source, target, policy_field, known_field in (
        (found.node_id_1, found.node_id_2, "policy_1", "known_1"),
        (found.node_id_2, found.node_id_1, "policy_2", "known_2"),
    ):
        policy, known = _optional(found, policy_field), _optional(answer, known_field)
        bounds = f"{amounts.msat(known.lower_msat)} to {amounts.msat(known.upper_msat)}" if known is not None else "?"
        rows.append((Id(source.hex()), Id(target.hex()), *_policy_cells(policy), bounds))
    columns = [
        Column("From"),
        Column("To"),
        Column("Base fee", right=True),
        Column("ppm", right=True),
        Column("Blocks", right=True),
        Column("Least", right=True),
        Column("Most", right=True),
        Column("Usable"),
        Column("Said"),
        Column("Can send, as far as known"),
    ]
    session.out.table(columns, rows, "")


def _policy_cells(policy: GraphPolicy | None) -> tuple[str, ...]:
    if policy is None:
        return ("?", "?", "?", "?", "?", "no", "never")
    return (
        amounts.msat(policy.fee_base_msat),
        str(policy.fee_proportional_millionths),
        str(policy.cltv_expiry_delta_blocks),
        amounts.msat(policy.htlc_minimum_msat),
        amounts.msat(policy.htlc_maximum_msat),
        "yes" if policy.usable else "no",
        amounts.minute(policy.updated_seconds),
    )


def plot(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; .png or .svg.", show_default=False)],
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Above the picture.", show_default=False)] = "",
    size: Annotated[int, typer.Option("--size", min=400, max=8000, help="Pixels of the longer side.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another number, another arrangement.")] = 1,
) -> None:
    """Draws the known network, and one's own place in it."""
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise CliError(f"{str(file)!r} is neither a .png nor a .svg file.", "Name the picture so.", USAGE)
    if not file.absolute().parent.is_dir():
        raise CliError(f"There is no folder {file.absolute().parent}.", "Make it first.", USAGE)
    from channeld.cli import graph_plot

    graph_plot.require_libraries()
    network = graph_plot.Network.collect(pages(session))
    with session.out.status("Arranging the nodes ..."):
        graph_plot.draw(network, file, title=title, size=size, seed=seed)
    if session.out.as_json:
        session.out.json_line({"file": str(file), "nodes": len(network.nodes), "channels": len(network.channels)})
    else:
        nodes, channels = amounts.count(len(network.nodes), "node"), amounts.count(len(network.channels), "channel")
        session.out.line(f"{nodes} and {channels} drawn into {file}.")


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    graph = typer.Typer(help="The public network: describe, info, node, channel, plot.", no_args_is_help=True)
    for name, function in (
        ("describe", describe),
        ("info", info),
        ("node", node),
        ("channel", channel),
        ("plot", plot),
    ):
        command(graph, name)(function)
    app.add_typer(graph, name="graph")
