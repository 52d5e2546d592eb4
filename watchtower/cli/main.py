"""`watchtowerctl`: the operator's view of a running watchtowerd."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from watchtower.rpc.commandline import (
    FAILED,
    NOT_ALLOWED,
    STATUS_OF_CODE,
    UNAVAILABLE,
    USAGE,
    CliError,
    as_sentence,
    check_network,
    run_app,
    version_shower,
)
from watchtower.rpc.console import Column, Id, Output
from watchtower.tower.paths import TowerPaths, tower_paths

if TYPE_CHECKING:
    from watchtower.v1 import operator_pb2

EXIT_STATUSES = (
    "Exit status: 0 done; 1 failed, or the tower is not in step with the chain (status); 2 wrong usage; 3 not found; "
    "5 the tower is away; 9 wrong token or certificate; 130 interrupted."
)
TIMEOUT_SECONDS = 30.0

app = typer.Typer(
    name="watchtowerctl",
    help="Talks to a running watchtowerd.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many, the newest.")]


class Settings(NamedTuple):
    """What the global options say."""

    datadir: Path | None
    network: str | None
    rpcserver: str | None
    as_json: bool


@app.callback()
def settings(
    context: typer.Context,
    datadir: Annotated[
        Path | None,
        typer.Option(envvar="WATCHTOWERD_DATADIR", help="The tower's folder.", show_default="~/.watchtowerd"),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            envvar="WATCHTOWERD_NETWORK",
            help="mainnet, testnet, signet or regtest.",
            show_default="the one whose tower runs",
        ),
    ] = None,
    rpcserver: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where it listens.", show_default="what it wrote into its folder"),
    ] = None,
    as_json: JsonFlag = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=version_shower("watchtowerctl"), is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    check_network(network)
    context.obj = Settings(datadir, network, rpcserver, as_json)


class Session:
    """One run: the connection, and what the user sees."""

    def __init__(self, context: typer.Context, as_json: bool) -> None:
        chosen: Settings = context.find_root().obj
        self._settings = chosen
        self.out = Output(chosen.as_json or as_json)
        self._paths = self._find()

    def _find(self) -> TowerPaths:
        root = tower_paths("mainnet", self._settings.datadir).root
        if self._settings.network is not None:
            return TowerPaths(root, self._settings.network)
        running = sorted(path.parent.name for path in root.glob("*/grpc.addr"))
        if len(running) > 1:
            raise CliError(f"Towers of several networks run: {', '.join(running)}.", "Choose with --network.", USAGE)
        return TowerPaths(root, running[0] if running else "mainnet")

    def _connect(self) -> tuple[Any, tuple[tuple[str, str], ...]]:
        import grpc

        from watchtower.v1.operator_pb2_grpc import OperatorStub

        paths = self._paths
        try:
            address = self._settings.rpcserver or paths.grpc_address.read_text().strip()
        except OSError:
            raise CliError(
                f"The tower is not running: there is no {paths.grpc_address}.",
                f"Start it with `watchtowerd --network {paths.network}`, or say where it is with --datadir.",
                UNAVAILABLE,
            ) from None
        try:
            token = paths.token.read_text().strip()
            credentials = grpc.ssl_channel_credentials(paths.tls_cert.read_bytes())
        except OSError as error:
            raise CliError(f"The token or certificate cannot be read: {error}.", "", NOT_ALLOWED) from None
        options = (("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0))
        channel = grpc.secure_channel(address, credentials, options=options)
        return OperatorStub(channel), (("authorization", f"Bearer {token}"),)

    def call(self, method: str, request: Any) -> Any:
        """One call. Raises CliError."""
        import grpc

        stub, metadata = self._connect()
        try:
            return getattr(stub, method)(request, timeout=TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def stream(self, method: str, request: Any) -> Iterable[Any]:
        """What the tower streams. Raises CliError."""
        import grpc

        stub, metadata = self._connect()
        try:
            yield from getattr(stub, method)(request, metadata=metadata)
        except grpc.RpcError as error:
            raise _failure(error) from None


def _failure(error: Any) -> CliError:
    code, details = error.code().name, error.details() or ""
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return CliError(f"The tower cannot be reached: {details}.", "See whether watchtowerd runs.", UNAVAILABLE)
    return CliError(as_sentence(details or code), "", STATUS_OF_CODE.get(code, FAILED))


@app.command()
def status(context: typer.Context, as_json: JsonFlag = False) -> None:
    """The tower at a glance. Exit status 1 if it is not in step with the chain."""
    from watchtower.v1 import operator_pb2

    session = Session(context, as_json)
    answer = session.call("GetStatus", operator_pb2.GetStatusRequest())
    session.out.show(answer, lambda: session.out.fields(_status_fields(answer)))
    if not answer.synced_to_chain:
        raise typer.Exit(FAILED)


def _status_fields(answer: operator_pb2.GetStatusResponse) -> list[tuple[str, str]]:
    on_disk = f", {_size(answer.database_bytes)} on disk" if answer.database_bytes else ""  # known of SQLite alone
    age = f", searched {_ago(answer.block_searched_seconds)}" if answer.block_searched_seconds else ""
    return [
        ("Tower", f"{answer.tower_id.hex()}@{answer.address}"),
        ("Network", answer.network),
        ("Chain", "in step" if answer.synced_to_chain else f"NOT in step: {answer.chain_status}"),
        ("Last block", f"{answer.block_height}{age}"),
        ("Sessions", f"{answer.sessions:,}"),
        ("Appointments", f"{answer.appointments:,}, {_size(answer.blob_bytes)}{on_disk}"),
        ("Breaches", f"{answer.breaches_total} seen, {answer.breaches_open} open"),
        ("Justice", f"{answer.justice_sent} sent, {answer.justice_confirmed} confirmed"),
        ("Taken back", f"{answer.saved_sat:,} sat"),
        ("Lost", f"{answer.lost_sat:,} sat in {answer.outputs_lost} outputs"),
        ("Useless blobs", f"{answer.undecipherable}"),
        ("Metrics", answer.metrics_url),
        ("Version", answer.version),
    ]


@app.command()
def sessions(context: typer.Context, limit: LimitOption = 100, as_json: JsonFlag = False) -> None:
    """Clients' sessions, the newest first."""
    from watchtower.v1 import operator_pb2, tower_pb2

    session = Session(context, as_json)
    answer = session.call("ListSessions", operator_pb2.ListSessionsRequest(limit=limit))
    out = session.out
    columns = [
        Column("Session"),
        Column("Mode"),
        Column("Appointments", True),
        Column("Size", True),
        Column("Reward", True),
        Column("Ends at", True),
        Column("Last used"),
    ]
    rows = (
        (
            Id(each.session_id.hex()),
            tower_pb2.Mode.Name(each.mode).removeprefix("MODE_").lower(),
            f"{each.appointments:,} of {each.max_appointments:,}",
            _size(each.bytes),
            f"{each.reward_permille}‰",
            str(each.expires_height),
            _ago(each.last_used_seconds),
        )
        for each in answer.sessions
    )
    out.show(answer, lambda: out.table(columns, rows, "There are no sessions."))


@app.command()
def appointments(
    context: typer.Context,
    session_id: Annotated[str, typer.Option("--session", help="Only this session's.", show_default=False)] = "",
    limit: LimitOption = 100,
    as_json: JsonFlag = False,
) -> None:
    """Appointments, the newest first; the tower does not know what is in them."""
    from watchtower.v1 import operator_pb2

    try:
        key = bytes.fromhex(session_id)
    except ValueError:
        raise CliError(f"{session_id!r} is no session id.", "It is 66 hex digits.", USAGE) from None
    session = Session(context, as_json)
    answer = session.call("ListAppointments", operator_pb2.ListAppointmentsRequest(limit=limit, session_id=key))
    out = session.out
    columns = [Column("Locator"), Column("Session"), Column("Size", True), Column("Watched above", True)]
    rows = (
        (each.locator.hex(), Id(each.session_id.hex()), _size(each.blob_bytes), str(each.accepted_height))
        for each in answer.appointments
    )
    out.show(answer, lambda: out.table(columns, rows, "There are no appointments."))


@app.command()
def breaches(
    context: typer.Context,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are not over for good.")] = False,
    limit: LimitOption = 100,
    as_json: JsonFlag = False,
) -> None:
    """Revoked commitments that were published, and what became of every output."""
    from watchtower.v1 import operator_pb2

    session = Session(context, as_json)
    answer = session.call("ListBreaches", operator_pb2.ListBreachesRequest(limit=limit, only_open=only_open))
    session.out.show(answer, lambda: _show_breaches(session.out, answer))


def _show_breaches(out: Output, answer: operator_pb2.ListBreachesResponse) -> None:
    if not answer.breaches:
        out.line("There are no breaches.")
    for breach in answer.breaches:
        where = f"block {breach.height}" if breach.height else "not in the chain"
        out.line(f"{breach.txid[::-1].hex()}  {where}, {breach.state}, seen {_ago(breach.seen_seconds)}", "bold")
        columns = [Column("Output"), Column("Kind"), Column("sat", True), Column("State"), Column("Taken by")]
        rows = (
            (
                each.outpoint.rpartition(":")[2] if each.kind != "htlc_tx" else each.outpoint,
                each.kind,
                f"{each.amount_sat:,}",
                each.state,
                f"{each.spending_txid[::-1].hex()} in block {each.spent_height}" if each.spent_height else "",
            )
            for each in breach.outputs
        )
        out.table(columns, rows, "")
        for tx in breach.justice:
            state = f"confirmed in block {tx.confirmed_height}" if tx.confirmed_height else tx.problem or "waiting"
            rate = f"{tx.feerate_per_kw / 250:.1f} sat/vB"
            out.line(f"  justice {tx.txid[::-1].hex()}: {rate}, fee {tx.fee_sat:,} sat, {state}")


@app.command()
def alerts(
    context: typer.Context,
    since: Annotated[
        int | None, typer.Option("--since", help="Begin after this number; 0: with the oldest.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What the operator must hear of, as it happens, until Ctrl-C. With --json one object a line."""
    from watchtower.rpc.jsonable import to_jsonable
    from watchtower.v1 import operator_pb2

    session = Session(context, as_json)
    for alert in session.stream("StreamAlerts", operator_pb2.StreamAlertsRequest(since_sequence=since)):
        if session.out.as_json:
            session.out.json_line(to_jsonable(alert))
        else:
            moment = datetime.datetime.fromtimestamp(alert.time_seconds).strftime("%Y-%m-%d %H:%M:%S")
            session.out.line(f"{alert.sequence:6} {moment} {alert.kind}: {alert.sentence}")


@app.command()
def stop(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Stops the tower."""
    from watchtower.v1 import operator_pb2

    session = Session(context, as_json)
    answer = session.call("Stop", operator_pb2.StopRequest())
    session.out.show(answer, lambda: session.out.line("The tower stops."))


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _ago(seconds: float) -> str:
    if not seconds:
        return "never"
    passed = max(0.0, datetime.datetime.now(datetime.UTC).timestamp() - seconds)
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if passed >= 2 * size:
            return f"{passed / size:.0f} {unit} ago"
    return f"{passed:.0f} seconds ago"


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name); the exit status."""
    return run_app(app, "watchtowerctl", arguments)


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
