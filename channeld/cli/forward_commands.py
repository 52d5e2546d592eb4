"""`channelctl policy` and `forwards`: what this node asks for forwarding, and what it has forwarded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli import amounts
from channeld.cli.channel_commands import CHANNEL_HELP, resolve
from channeld.cli.command import command, default_command, parser
from channeld.cli.invoice_commands import LimitOption, OffsetOption
from channeld.cli.output import Column, Id
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.channels_pb2 import Forward, SetPolicyResponse

ALL = "all"
ChannelOrAll = Annotated[str, typer.Argument(metavar="CHANNEL", help=f"{CHANNEL_HELP} Or: {ALL}.", show_default=False)]
_any_msat = parser(amounts.parse_msat)


def set_(
    session: Session,
    channel: ChannelOrAll,
    base: Annotated[
        int | None,
        typer.Option("--base", parser=_any_msat, metavar="AMOUNT", help="Fee for each payment.", show_default=False),
    ] = None,
    ppm: Annotated[
        int | None,
        typer.Option("--ppm", min=0, help="Fee in millionths of the amount, besides.", show_default=False),
    ] = None,
    delta: Annotated[
        int | None, typer.Option("--delta", min=0, help="Blocks between the expiries.", show_default=False)
    ] = None,
    least: Annotated[
        int | None,
        typer.Option("--min", parser=_any_msat, metavar="AMOUNT", help="The least to forward.", show_default=False),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--max", parser=_any_msat, metavar="AMOUNT", help="The most at once.", show_default=False),
    ] = None,
) -> None:
    """Changes what is asked for forwarding over a channel, or all; without options, shows it."""
    from channeld.v1 import channels_pb2

    request = channels_pb2.SetPolicyRequest(
        channel_id=None if channel == ALL else resolve(session, channel),
        fee_base_msat=base,
        fee_proportional_millionths=ppm,
        cltv_expiry_delta_blocks=delta,
        htlc_minimum_msat=least,
        htlc_maximum_msat=most,
    )
    answer = session.call(session.channels.SetPolicy, request)
    session.out.show(answer, lambda: show_policies(session, answer))


def show(session: Session, channel: ChannelOrAll = ALL) -> None:
    """What is asked for forwarding over a channel, or all."""
    set_(session, channel)


def show_policies(session: Session, answer: SetPolicyResponse) -> None:
    """A table of them."""
    rows = (
        (
            Id(policy.channel_id.hex()),
            amounts.msat(policy.fee_base_msat),
            str(policy.fee_proportional_millionths),
            str(policy.cltv_expiry_delta_blocks),
            amounts.msat(policy.htlc_minimum_msat),
            amounts.msat(policy.htlc_maximum_msat),
        )
        for policy in answer.policies
    )
    columns = [
        Column("Channel"),
        Column("Base fee", right=True),
        Column("ppm", right=True),
        Column("Blocks", right=True),
        Column("Least", right=True),
        Column("Most", right=True),
    ]
    session.out.table(columns, rows, "There are no open channels.")


def forwards(session: Session, limit: LimitOption = 100, offset: OffsetOption = 0) -> None:
    """Payments of others that went through this node, newest first, and what they paid for it."""
    from channeld.v1 import channels_pb2

    request = channels_pb2.ListForwardsRequest(limit=limit, offset=offset)
    answer = session.call(session.channels.ListForwards, request)
    session.out.show(answer, lambda: _show_forwards(session, list(answer.forwards)))


def _show_forwards(session: Session, found: list[Forward]) -> None:
    rows = (
        (
            amounts.minute(int(forward.settled_seconds)),
            Id(forward.incoming_channel_id.hex()),
            Id(forward.outgoing_channel_id.hex()),
            amounts.msat(forward.outgoing_msat),
            amounts.msat(forward.fee_msat),
            f"{forward.settled_seconds - forward.received_seconds:.2f} s",
            Id(forward.payment_hash.hex()),
        )
        for forward in found
    )
    columns = [
        Column("When"),
        Column("From"),
        Column("To"),
        Column("Amount", right=True),
        Column("Earned", right=True),
        Column("Took", right=True),
        Column("Payment hash"),
    ]
    session.out.table(columns, rows, "Nothing was forwarded yet.")
    if found:
        session.out.line(f"{amounts.msat(sum(forward.fee_msat for forward in found))} earned with these.")


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    policy = typer.Typer(help="What is asked for forwarding: show (also without a word), set.")
    command(policy, "show")(show)
    command(policy, "set")(set_)
    default_command(policy, lambda session: show(session))
    app.add_typer(policy, name="policy")
    command(app, "forwards")(forwards)
