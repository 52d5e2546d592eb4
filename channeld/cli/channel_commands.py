"""`channelctl channel ...`: opening, looking at and closing channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts
from channeld.cli.amounts import FormatError
from channeld.cli.command import (
    AMOUNT_HELP,
    FeerateOption,
    KeyOption,
    YesFlag,
    command,
    confirm,
    msat_parser,
    sat_parser,
    warn_if_behind,
)
from channeld.cli.failures import FAILED, INTERRUPTED, NOT_FOUND, USAGE, CliError
from channeld.cli.ids import NodeAddress, parse_hash_prefix, parse_outpoint, parse_scid, scid, txid_hex
from channeld.cli.output import Column, Id
from channeld.cli.peer_commands import NodeArgument, connect_quietly
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.channels_pb2 import Channel, GetClosingResponse

CHANNEL_HELP = "Its id or the first few characters of it, its short id (123x4x5), or its funding output (txid:0)."
ChannelArgument = Annotated[str, typer.Argument(metavar="CHANNEL", help=CHANNEL_HELP, show_default=False)]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait until it is done, and show what goes on.")]
OutdatedFlag = Annotated[
    bool,
    typer.Option(
        "--even-if-outdated",
        help="With --force: also when the peer was not here since the daemon started to confirm that our state is the "
        "newest. If the database is an old copy, that loses everything in the channel.",
    ),
]
OVER = frozenset({"closed", "forgotten", "failed", "canceled"})
_CLOSED_HOW = {
    "mutual": "by both",
    "local": "by us alone",
    "remote_current": "by the peer alone",
    "remote_next": "by the peer alone",
    "revoked": "by the peer, with a state that it had revoked",
    "unknown": "by a transaction that is not known here",
}
_LOOK_AGAIN_SECONDS = 10.0


def open_(
    session: Session,
    node: NodeArgument,
    amount: Annotated[
        int, typer.Argument(parser=sat_parser, metavar="AMOUNT", help=f"Capacity: {AMOUNT_HELP}", show_default=False)
    ],
    push: Annotated[
        int,
        typer.Option(
            "--push", parser=msat_parser, metavar="AMOUNT", help="Give so much of it to the peer.", show_default=False
        ),
    ] = 0,
    private: Annotated[bool, typer.Option("--private", help="Do not tell the network of it.")] = False,
    zero_conf: Annotated[
        bool, typer.Option("--zero-conf", help="Use it before it is confirmed, if the peer trusts us.")
    ] = False,
    feerate: FeerateOption = None,
    close_address: Annotated[
        str, typer.Option("--close-address", metavar="ADDRESS", help="Where our side goes when both close it.")
    ] = "",
    wait: WaitFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Opens a channel; NODE may be a connected peer's id, or node_id@host:port to connect first."""
    open_channel(
        session,
        node,
        amount,
        push_msat=push,
        private=private,
        zero_conf=zero_conf,
        feerate=feerate,
        close_address=close_address,
        wait=wait,
        yes=yes,
        key=idempotency_key,
    )


def open_channel(
    session: Session,
    node: NodeAddress,
    amount_sat: int,
    *,
    push_msat: int,
    private: bool,
    zero_conf: bool,
    feerate: int | None,
    close_address: str,
    wait: bool,
    yes: bool,
    key: str,
) -> None:
    """Opens a channel of `amount_sat`; `feerate` in sat per 1000 weight units."""
    from channeld.v1 import channels_pb2

    warn_if_behind(session)
    push = f", of which {amounts.msat(push_msat)} are given away" if push_msat else ""
    session.out.note(f"Open a channel of {amounts.sat(amount_sat)} with {node.node_id.hex()}{push}.", "")
    confirm(session, yes, "Open it?")
    if node.host:
        connect_quietly(session, node)
    request = channels_pb2.OpenChannelRequest(
        node_id=node.node_id,
        amount_sat=amount_sat,
        push_msat=push_msat,
        private=private,
        zero_conf=zero_conf,
        feerate_per_kw=feerate,
        close_to_address=close_address,
        idempotency_key=key,
    )
    with session.out.status("Agreeing with the peer, and funding"):
        answer = session.call_once(lambda session: session.channels.Open, request)
    if wait:
        answer.channel.CopyFrom(_wait(session, answer.channel, "opening", lambda channel: channel.active))
        if not answer.channel.active:
            raise CliError(f"The channel did not open: {answer.channel.status or answer.channel.phase}.", "", FAILED)
    session.out.show(answer, lambda: _show_opened(session, answer.channel))


def _show_opened(session: Session, channel: Channel) -> None:
    if channel.active:
        session.out.line(f"The channel can be used: {amounts.msat(channel.available_to_send_msat)} can be sent.")
    else:
        session.out.line(f"The channel is being opened: {channel.status or channel.phase}.")
    session.out.fields([("Channel", channel.channel_id.hex()), ("Funding", _funding(channel))])


def list_(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that are closed.")] = False,
) -> None:
    """The channels, and what can be sent and received over them."""
    list_channels(session, everything, lambda channel: True)


def list_channels(session: Session, everything: bool, wanted: Callable[[Channel], bool]) -> None:
    """The channels that `wanted` chooses; `everything` with those that are closed."""
    from channeld.v1 import channels_pb2

    answer = session.call(session.channels.List, channels_pb2.ListChannelsRequest(include_closed=everything))
    chosen = [channel for channel in answer.channels if wanted(channel)]
    del answer.channels[:]
    answer.channels.extend(chosen)
    out = session.out
    rows = (
        (
            Id(channel.channel_id.hex()),
            scid(channel.short_channel_id) if channel.HasField("short_channel_id") else "",
            Id(channel.peer_id.hex()),
            _state(channel),
            amounts.sat(channel.capacity_sat),
            amounts.msat(channel.available_to_send_msat),
            amounts.msat(channel.available_to_receive_msat),
        )
        for channel in chosen
    )
    columns = [
        Column("Channel"),
        Column("Short id"),
        Column("Peer"),
        Column("State", fold=True),
        Column("Capacity", right=True),
        Column("Can send", right=True),
        Column("Can receive", right=True),
    ]
    out.show(answer, lambda: out.table(columns, rows, "There are no channels. `channelctl channel open` makes one."))


def show(session: Session, channel: ChannelArgument) -> None:
    """Everything about one channel."""
    from channeld.v1 import channels_pb2

    request = channels_pb2.GetChannelRequest(channel_id=resolve(session, channel))
    answer = session.call(session.channels.Get, request)
    session.out.show(answer, lambda: _show_channel(session, answer.channel))


def _show_channel(session: Session, channel: Channel) -> None:
    session.out.fields(
        [
            ("Channel", channel.channel_id.hex()),
            ("Short id", scid(channel.short_channel_id) if channel.HasField("short_channel_id") else ""),
            ("Peer", f"{channel.peer_id.hex()} ({'connected' if channel.connected else 'away'})"),
            (
                "State",
                _state(channel) if channel.active or not channel.status else f"{_state(channel)}: {channel.status}",
            ),
            ("Funding", _funding(channel)),
            ("Closing", txid_hex(channel.closing_txid) if channel.HasField("closing_txid") else ""),
            ("Opened by", "us" if channel.opener == 1 else "the peer"),
            ("Announced", "yes" if channel.announced else "no"),
            ("Type", ", ".join(channel.channel_type)),
            ("Capacity", amounts.sat(channel.capacity_sat)),
            ("Ours", amounts.msat(channel.local_msat)),
            ("Theirs", amounts.msat(channel.remote_msat)),
            ("Can send", amounts.msat(channel.available_to_send_msat)),
            ("Can receive", amounts.msat(channel.available_to_receive_msat)),
            (
                "Reserves",
                f"{amounts.sat(channel.local_reserve_sat)} ours, {amounts.sat(channel.remote_reserve_sat)} theirs",
            ),
            (
                "Commitment",
                f"number {channel.local_commitment_number:,} ours, {channel.remote_commitment_number:,} theirs, "
                f"{amounts.feerate(channel.feerate_per_kw)}, fee {amounts.sat(channel.commitment_fee_sat)}",
            ),
        ]
    )
    if channel.htlcs:
        session.out.table(
            [Column("Payment"), Column("Direction"), Column("Amount", right=True), Column("Until block", right=True)],
            (
                (
                    htlc.payment_hash.hex(),
                    "to us" if htlc.incoming else "to them",
                    amounts.msat(htlc.amount_msat),
                    f"{htlc.cltv_expiry:,}",
                )
                for htlc in channel.htlcs
            ),
            "",
        )


def close(
    session: Session,
    channel: ChannelArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Without the peer: our money comes back after a delay, and costs more.")
    ] = False,
    address: Annotated[
        str,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Where our side goes; without it, where it was said to go before, or the wallet.",
        ),
    ] = "",
    feerate: FeerateOption = None,
    even_if_outdated: OutdatedFlag = False,
    wait: WaitFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """Closes a channel, together with the peer unless --force is given.

    Again, with a higher --feerate, it pays more for a close that nobody mines; with --force, which needs no peer, our
    commitment competes with it.
    """
    close_channel(
        session,
        channel,
        force=force,
        even_if_outdated=even_if_outdated,
        address=address,
        feerate=feerate,
        wait=wait,
        yes=yes,
        key=idempotency_key,
    )


def close_channel(
    session: Session,
    reference: str,
    *,
    force: bool,
    even_if_outdated: bool,
    address: str,
    feerate: int | None,
    wait: bool,
    yes: bool,
    key: str,
) -> None:
    """Closes the channel that `reference` names; `feerate` in sat per 1000 weight units."""
    from channeld.v1 import channels_pb2

    channel_id = resolve(session, reference)
    channel = session.call(session.channels.Get, channels_pb2.GetChannelRequest(channel_id=channel_id)).channel
    how = "without the peer" if force else "together with the peer"
    session.out.note(
        f"Close the channel {channel_id.hex()} of {amounts.sat(channel.capacity_sat)}, {how}; "
        f"{amounts.msat(channel.local_msat)} of it are ours.",
        "",
    )
    confirm(session, yes, "Close it?")
    request = channels_pb2.CloseChannelRequest(
        channel_id=channel_id,
        force=force,
        even_if_outdated=even_if_outdated,
        address=address,
        feerate_per_kw=feerate,
        idempotency_key=key,
    )
    with session.out.status("Closing"):
        answer = session.call_once(lambda session: session.channels.Close, request)
    if wait:
        answer.channel.CopyFrom(_wait(session, answer.channel, "closing", lambda channel: channel.phase in OVER))
    session.out.show(answer, lambda: _show_closing(session, answer.channel))


def _show_closing(session: Session, channel: Channel) -> None:
    over = channel.phase in OVER
    session.out.line(
        "The channel is closed." if over else f"The channel is being closed: {channel.status or channel.phase}."
    )
    if channel.HasField("closing_txid"):
        session.out.line(f"Transaction {txid_hex(channel.closing_txid)}")


def closed(session: Session, channel: ChannelArgument) -> None:
    """How a channel ended, or is ending on chain, and what became of every satoshi in it."""
    from channeld.v1 import channels_pb2

    request = channels_pb2.GetClosingRequest(channel_id=resolve(session, channel))
    answer = session.call(session.channels.GetClosing, request)
    session.out.show(answer, lambda: _show_closed(session, answer))


def _show_closed(session: Session, closed: GetClosingResponse) -> None:
    session.out.fields(
        [
            ("Channel", closed.channel.channel_id.hex()),
            ("Closed", f"{_CLOSED_HOW.get(closed.kind, closed.kind)}, in block {closed.height:,}"),
            ("Transaction", txid_hex(closed.closing_txid)),
            ("Commitment", f"number {closed.commitment_number:,}" if closed.HasField("commitment_number") else ""),
            ("Fee", amounts.sat(closed.commitment_fee_sat)),
            ("Final", "yes" if closed.over else f"not before block {closed.irrevocable_height:,}"),
        ]
    )
    columns = [
        Column("Output"),
        Column("Kind"),
        Column("Whose"),
        Column("Amount", right=True),
        Column("Fee", right=True),
        Column("Status", fold=True),
    ]
    rows = (
        (
            Id(txid_hex(output.txid), f":{output.vout}") if output.HasField("txid") else "none",
            output.kind.replace("_", " "),
            "ours" if output.owner == 1 else "theirs",
            amounts.sat(output.amount_sat),
            amounts.sat(output.fee_sat) if output.HasField("fee_sat") else "",
            output.status_text or output.status.replace("_", " "),
        )
        for output in closed.outputs
    )
    session.out.table(columns, list(rows), "It has no outputs.")


def _wait(session: Session, channel: Channel, what: str, done: Callable[[Channel], bool]) -> Channel:
    """Looks at the channel whenever something happens, until it is `done` or over."""
    from channeld.v1 import channels_pb2, events_pb2

    request = channels_pb2.GetChannelRequest(channel_id=channel.channel_id)

    def look() -> Channel:
        return session.call(session.channels.Get, request).channel

    try:
        with session.out.status(channel.status or channel.phase, log=True) as update:
            while True:
                # The time limit is there for what no event tells of.
                events = session.stream(session.events.Subscribe, events_pb2.SubscribeRequest(), _LOOK_AGAIN_SECONDS)
                channel = look()
                for _ in events:
                    if done(channel) or channel.phase in OVER:
                        break
                    update(channel.status or channel.phase)
                    channel = look()
                if done(channel) or channel.phase in OVER:
                    return channel
    except KeyboardInterrupt:
        raise CliError(
            f"You stopped waiting; the {what} goes on.", "See `channelctl channel list`.", INTERRUPTED
        ) from None


def resolve(session: Session, reference: str) -> bytes:
    """The id of the channel that `reference` names (see `CHANNEL_HELP`). Raises `CliError`."""
    from channeld.v1 import channels_pb2

    try:
        matches = _matcher(reference)
    except FormatError:
        raise CliError(
            f"{reference!r} names no channel.",
            f"It is named by one of these: {CHANNEL_HELP[:1].lower()}{CHANNEL_HELP[1:]}",
            USAGE,
        ) from None
    listed = session.call(session.channels.List, channels_pb2.ListChannelsRequest(include_closed=True)).channels
    found = [channel for channel in listed if matches(channel)]
    if not found:
        raise CliError(f"There is no channel {reference}.", "See `channelctl channel list --all`.", NOT_FOUND)
    if len(found) > 1:
        raise CliError(f"{len(found)} channels begin with {reference}.", "Write more of the id.", USAGE)
    return found[0].channel_id


def _matcher(reference: str) -> Callable[[Channel], bool]:
    number = parse_scid(reference)
    if number is not None:
        return lambda channel: (
            number
            in (
                channel.short_channel_id,
                channel.local_alias_short_channel_id,
                channel.remote_alias_short_channel_id,
            )
        )
    if ":" in reference:
        txid, vout = parse_outpoint(reference)
        return lambda channel: (channel.funding_txid, channel.funding_vout) == (txid, vout)
    prefix = parse_hash_prefix(reference, "a channel id")
    return lambda channel: channel.channel_id.hex().startswith(prefix)


def _state(channel: Channel) -> str:
    if channel.active:
        return "active"
    needs_peer = not channel.connected and channel.phase not in OVER | {"closing"}
    return channel.phase.replace("_", " ") + (", peer away" if needs_peer else "")


def _funding(channel: Channel) -> str:
    return f"{txid_hex(channel.funding_txid)}:{channel.funding_vout}" if channel.HasField("funding_txid") else ""


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    channel = typer.Typer(help="Channels: open, list, show, close, closed.", no_args_is_help=True)
    command(channel, "open")(open_)
    command(channel, "list")(list_)
    command(channel, "show")(show)
    command(channel, "close")(close)
    command(channel, "closed")(closed)
    command(channel, "closing", hidden=True)(closed)
    app.add_typer(channel, name="channel")
