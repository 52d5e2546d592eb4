"""`channelctl info`, `events` and `stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts
from channeld.cli.command import command
from channeld.cli.failures import UNAVAILABLE, CliError
from channeld.cli.ids import txid_hex
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.node_pb2 import GetInfoResponse


def info(session: Session) -> None:
    """Who the node is, and how far it has come."""
    from channeld.v1 import node_pb2

    answer = session.call(session.node.GetInfo, node_pb2.GetInfoRequest())
    session.out.show(answer, lambda: _show_info(session, answer))


def _show_info(session: Session, info: GetInfoResponse) -> None:
    node_id = info.node_id.hex()
    session.out.fields(
        [
            ("Node", node_id),
            ("Alias", info.alias),
            ("Colour", info.color),
            ("Version", info.version),
            ("Network", info.network),
            ("Height", f"{info.block_height:,}"),
            ("Block", txid_hex(info.block_hash)),
            ("Chain", f"{'in step' if info.synced_to_chain else 'not in step'}: {info.chain_status}"),
            ("Listens on", [f"{node_id}@{address}" for address in info.listen]),
            ("Peers", str(info.num_peers)),
            (
                "Channels",
                f"{info.num_active_channels} active, {info.num_inactive_channels} inactive, "
                f"{info.num_pending_channels} pending",
            ),
            ("Features", ", ".join(info.features)),
            ("Up for", amounts.duration(info.uptime_seconds)),
        ]
    )


def stop(session: Session) -> None:
    """Stops the daemon. Money under way is safe; it goes on when the daemon starts again."""
    from channeld.v1 import node_pb2

    answer = session.call(session.node.Stop, node_pb2.StopRequest())
    session.out.show(answer, lambda: session.out.line("The daemon is stopping."))


def events(
    session: Session,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="Only these: payment.succeeded, or payment for all that begin so. May be given several times; "
            "a wrong one is answered with those that there are.",
        ),
    ] = None,
    since: Annotated[
        int | None, typer.Option(min=0, metavar="NUMBER", help="Begin with what came after this event.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many events.")] = None,
) -> None:
    """What happens, as it happens, until Ctrl-C. With --json one JSON object a line."""
    from channeld.cli.jsonable import to_jsonable
    from channeld.v1 import events_pb2

    request = events_pb2.SubscribeRequest(kinds=kinds or [], since_sequence=since)
    left = count
    for event in session.stream(session.events.Subscribe, request):
        if session.out.as_json:
            session.out.json_line(to_jsonable(event))
        else:
            time = amounts.point_in_time(event.time_seconds)
            session.out.line(f"{time}  #{event.sequence}  {event.kind:<18}  {event.sentence}")
        if left is not None:
            left -= 1
            if left == 0:
                return
    raise CliError("The daemon has stopped.", "", UNAVAILABLE)


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    command(app, "info")(info)
    command(app, "events")(events)
    command(app, "stop")(stop)
