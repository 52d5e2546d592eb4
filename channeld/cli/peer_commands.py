"""`channelctl peer ...`: other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli.command import command, duration_parser, node_parser
from channeld.cli.failures import USAGE, CliError
from channeld.cli.ids import NodeAddress, parse_host_port
from channeld.cli.output import Column, Id
from channeld.cli.session import DEFAULT_TIMEOUT_SECONDS, Session

if TYPE_CHECKING:
    from channeld.v1.peers_pb2 import ConnectPeerResponse

NODE_HELP = "node_id@host:port; without a port 9735."
NodeArgument = Annotated[
    NodeAddress, typer.Argument(parser=node_parser, metavar="NODE", help=NODE_HELP, show_default=False)
]


def connect(
    session: Session,
    node: NodeArgument,
    address: Annotated[
        str | None, typer.Argument(metavar="[HOST:PORT]", help="If NODE is a node id alone.", show_default=False)
    ] = None,
    timeout: Annotated[
        int,
        typer.Option("--timeout", parser=duration_parser, metavar="TIME", show_default="10s", help="How long to try."),
    ] = 10,  # seconds
) -> None:
    """Connects to a node."""
    connect_to(session, node, address, timeout)


def connect_to(session: Session, node: NodeAddress, address: str | None = None, timeout_seconds: int = 10) -> None:
    """Connects to `node`, at `address` if that is given, and tells."""
    host, port = node.host, node.port
    if address is not None:
        host, port = parse_host_port(address)
    if not host:
        raise CliError("Say where the node is: node_id@host:port.", "", USAGE)
    answer = connect_quietly(session, NodeAddress(node.node_id, host, port), timeout_seconds)
    session.out.show(
        answer, lambda: session.out.line(f"Connected to {answer.peer.node_id.hex()} at {answer.peer.address}.")
    )


def connect_quietly(session: Session, node: NodeAddress, timeout_seconds: int = 10) -> ConnectPeerResponse:
    """Connects to `node` at its host and port."""
    from channeld.v1 import peers_pb2

    request = peers_pb2.ConnectPeerRequest(
        node_id=node.node_id, host=node.host, port=node.port, timeout_seconds=float(timeout_seconds)
    )
    return session.call(session.peers.Connect, request, timeout_seconds + DEFAULT_TIMEOUT_SECONDS)


def disconnect(
    session: Session,
    node: NodeArgument,
    force: Annotated[bool, typer.Option("--force", help="Also if there are channels with it.")] = False,
) -> None:
    """Closes the connection to a node."""
    from channeld.v1 import peers_pb2

    request = peers_pb2.DisconnectPeerRequest(node_id=node.node_id, force=force)
    answer = session.call(session.peers.Disconnect, request)
    session.out.show(answer, lambda: session.out.line(f"Disconnected from {node.node_id.hex()}."))


def list_(session: Session) -> None:
    """The nodes that are connected or have channels with this one."""
    from channeld.v1 import peers_pb2

    answer = session.call(session.peers.List, peers_pb2.ListPeersRequest())
    out = session.out
    rows = (
        (
            Id(peer.node_id.hex()),
            peer.address,
            ("yes, they called" if peer.inbound else "yes, we called") if peer.connected else "no",
            str(peer.num_channels),
            f"{peer.ping_seconds * 1000:.0f} ms" if peer.HasField("ping_seconds") else "",
            peer.last_error,
        )
        for peer in answer.peers
    )
    columns = [
        Column("Node"),
        Column("Address", fold=True),
        Column("Connected"),
        Column("Channels", right=True),
        Column("Ping", right=True),
        Column("Last error", fold=True),
    ]
    out.show(answer, lambda: out.table(columns, rows, "There are no peers. `channelctl peer connect` finds one."))


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    peer = typer.Typer(help="Other nodes: connect, disconnect, list.", no_args_is_help=True)
    command(peer, "connect")(connect)
    command(peer, "disconnect")(disconnect)
    command(peer, "list")(list_)
    app.add_typer(peer, name="peer")
