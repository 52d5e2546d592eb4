"""`channelctl`: the program, its global options, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from channeld.cli import (
    channel_commands,
    forward_commands,
    graph_commands,
    invoice_commands,
    lncli,
    lncli_graph,
    lncli_payments,
    node_commands,
    payment_commands,
    peer_commands,
    route_commands,
    score_commands,
    send_commands,
    tower_commands,
    wallet_commands,
)
from channeld.cli.amounts import FormatError
from channeld.cli.failures import EXIT_STATUSES
from channeld.cli.session import Settings
from watchtower.rpc.commandline import check_network, run_app, version_shower

app = typer.Typer(
    name="channelctl",
    help="Talks to a running channeld. Amounts: 1000sat, 0.01btc, 5000msat; no unit means sat.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def settings(
    context: typer.Context,
    datadir: Annotated[
        Path | None,
        typer.Option(envvar="CHANNELD_DATADIR", help="The daemon's folder.", show_default="~/.channeld"),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            envvar="CHANNELD_NETWORK",
            help="mainnet, testnet, signet or regtest.",
            show_default="the one whose daemon runs",
        ),
    ] = None,
    rpcserver: Annotated[
        str | None,
        typer.Option(
            envvar="CHANNELD_RPCSERVER",
            metavar="HOST:PORT",
            help="Where the daemon listens.",
            show_default="what it wrote into its folder",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert",
            "--tlscertpath",
            envvar="CHANNELD_TLS_CERT",
            help="The daemon's certificate.",
            show_default="tls.cert in its folder",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="CHANNELD_TOKEN_FILE", help="The daemon's token.", show_default="token in its folder"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=version_shower("channelctl"), is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    check_network(network)
    context.obj = Settings(datadir, network, rpcserver, tls_cert, token_file, as_json)


for module in (
    node_commands,
    wallet_commands,
    peer_commands,
    channel_commands,
    forward_commands,
    invoice_commands,
    payment_commands,
    send_commands,
    graph_commands,
    route_commands,
    score_commands,
    tower_commands,
    lncli,
    lncli_graph,
    lncli_payments,
):
    module.register(app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name); the exit status."""
    return run_app(app, "channelctl", arguments, (FormatError,))


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
