"""The commands that users of lncli type, with lncli's flags and its order of arguments. They do what ours do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from channeld.cli import (
    channel_commands,
    forward_commands,
    invoice_commands,
    node_commands,
    peer_commands,
    wallet_commands,
)
from channeld.cli.command import (
    FeerateOption,
    KeyOption,
    OptionGroup,
    YesFlag,
    any_msat_parser,
    command,
    duration_parser,
    hash_parser,
    msat_parser,
    node_parser,
    payment_hash_parser,
    sat_parser,
)
from channeld.cli.failures import USAGE, CliError
from channeld.cli.ids import NodeAddress, parse_host_port
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.channels_pb2 import Channel

PANEL = "As in lncli"
T = TypeVar("T")


NodeText = Annotated[NodeAddress | None, typer.Argument(parser=node_parser, metavar="[NODE_KEY]", show_default=False)]
SatArgument = Annotated[int | None, typer.Argument(parser=sat_parser, metavar="[AMT]", show_default=False)]
SatFlag = Annotated[int | None, typer.Option("--amt", parser=sat_parser, metavar="AMT", show_default=False)]
DestinationText = Annotated[
    NodeAddress | None, typer.Argument(parser=node_parser, metavar="[DEST]", show_default=False)
]
AmountText = Annotated[int | None, typer.Argument(parser=msat_parser, metavar="[AMT]", show_default=False)]
AmountFlag = Annotated[int | None, typer.Option("--amt", parser=msat_parser, metavar="AMT", show_default=False)]
LastHopFlag = Annotated[
    NodeAddress | None,
    typer.Option("--last_hop", "--last-hop", parser=node_parser, metavar="KEY", show_default=False),
]
InvoiceText = Annotated[str | None, typer.Argument(metavar="[PAY_REQ]", show_default=False)]
InvoiceFlag = Annotated[str | None, typer.Option("--pay_req", metavar="PAY_REQ", show_default=False)]
HashText = Annotated[str | None, typer.Argument(parser=payment_hash_parser, metavar="[RHASH]", show_default=False)]
HashFlag = Annotated[
    str | None,
    typer.Option("--rhash", "--paymenthash", parser=payment_hash_parser, metavar="RHASH", show_default=False),
]
PreimageText = Annotated[
    bytes | None,
    typer.Argument(parser=hash_parser("a preimage"), metavar="[PREIMAGE]", show_default=False),
]
PreimageFlag = Annotated[
    bytes | None,
    typer.Option("--preimage", parser=hash_parser("a preimage"), metavar="HEX", show_default=False),
]
ForceFlag = Annotated[bool, typer.Option("--force", "-f", "--yes", help="Do not ask before money moves.")]
BlockFlag = Annotated[bool, typer.Option("--block", help="Wait until it is done, and show what goes on.")]


def either(positional: T | None, flag: T | None, what: str) -> T:
    """What was given, as an argument or by its flag. Raises `CliError` unless it was given once."""
    if positional is not None and flag is not None:
        raise CliError(f"{what} is given twice, as an argument and as a flag.", "", USAGE)
    value = positional if positional is not None else flag
    if value is None:
        raise CliError(f"{what} is missing.", "Add --help to see how to write it.", USAGE)
    return value


def sendcoins(
    session: Session,
    addr_: Annotated[str | None, typer.Argument(metavar="[ADDR]", show_default=False)] = None,
    amt_: SatArgument = None,
    addr: Annotated[str | None, typer.Option("--addr", metavar="ADDR", show_default=False)] = None,
    amt: SatFlag = None,
    sweepall: Annotated[bool, typer.Option("--sweepall", help="Send everything.")] = False,
    feerate: FeerateOption = None,
    force: ForceFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `wallet send`."""
    if sweepall and (amt_ is not None or amt is not None):
        raise CliError("Give an amount or --sweepall, not both.", "", USAGE)
    amount_sat = None if sweepall else either(amt_, amt, "The amount")
    address = either(addr_, addr, "The address")
    wallet_commands.send_coins(session, address, amount_sat, feerate, force, idempotency_key)


def openchannel(
    session: Session,
    node_key_: NodeText = None,
    local_amt_: SatArgument = None,
    push_amt_: Annotated[
        int | None, typer.Argument(parser=any_msat_parser, metavar="[PUSH_AMT]", show_default=False)
    ] = None,
    node_key: Annotated[
        NodeAddress | None,
        typer.Option("--node_key", "--node-key", parser=node_parser, metavar="NODE_KEY", show_default=False),
    ] = None,
    local_amt: Annotated[
        int | None,
        typer.Option("--local_amt", "--local-amt", parser=sat_parser, metavar="AMT", show_default=False),
    ] = None,
    push_amt: Annotated[
        int | None,
        typer.Option("--push_amt", "--push-amt", parser=any_msat_parser, metavar="AMT", show_default=False),
    ] = None,
    connect: Annotated[
        str | None, typer.Option("--connect", metavar="HOST:PORT", help="Connect there first.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Do not tell the network of it.")] = False,
    zero_conf: Annotated[bool, typer.Option("--zero_conf", "--zero-conf", help="Use it at once.")] = False,
    close_address: Annotated[str, typer.Option("--close_address", "--close-address", metavar="ADDR")] = "",
    feerate: FeerateOption = None,
    block: BlockFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `channel open`."""
    node = either(node_key_, node_key, "The node key")
    if connect is not None:
        node = NodeAddress(node.node_id, *parse_host_port(connect))
    if push_amt_ is not None:
        push_amt = either(push_amt_, push_amt, "The amount to push")
    channel_commands.open_channel(
        session,
        node,
        either(local_amt_, local_amt, "The local amount"),
        push_msat=push_amt or 0,
        private=private,
        zero_conf=zero_conf,
        feerate=feerate,
        close_address=close_address,
        wait=block,
        yes=yes,
        key=idempotency_key,
    )


def listchannels(
    session: Session,
    active_only: Annotated[bool, typer.Option("--active_only", "--active-only")] = False,
    inactive_only: Annotated[bool, typer.Option("--inactive_only", "--inactive-only")] = False,
    public_only: Annotated[bool, typer.Option("--public_only", "--public-only")] = False,
    private_only: Annotated[bool, typer.Option("--private_only", "--private-only")] = False,
    peer: Annotated[
        NodeAddress | None, typer.Option("--peer", parser=node_parser, metavar="NODE_KEY", show_default=False)
    ] = None,
) -> None:
    """As `channel list`."""

    def wanted(channel: Channel) -> bool:
        return (
            (channel.active or not active_only)
            and not (channel.active and inactive_only)
            and (channel.announced or not public_only)
            and not (channel.announced and private_only)
            and (peer is None or channel.peer_id == peer.node_id)
        )

    channel_commands.list_channels(session, False, wanted)


def pendingchannels(session: Session) -> None:
    """The channels that are being opened or closed."""
    channel_commands.list_channels(session, False, lambda channel: channel.phase != "normal")


def closechannel(
    session: Session,
    channel: Annotated[str | None, typer.Argument(metavar="[FUNDING_TXID]", show_default=False)] = None,
    output_index_: Annotated[int | None, typer.Argument(metavar="[OUTPUT_INDEX]", min=0, show_default=False)] = None,
    funding_txid: Annotated[
        str | None, typer.Option("--funding_txid", "--funding-txid", metavar="TXID", show_default=False)
    ] = None,
    output_index: Annotated[
        int | None, typer.Option("--output_index", "--output-index", min=0, metavar="N", show_default=False)
    ] = None,
    chan_point: Annotated[
        str | None, typer.Option("--chan_point", "--chan-point", metavar="TXID:N", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Without the peer.")] = False,
    even_if_outdated: channel_commands.OutdatedFlag = False,
    delivery_addr: Annotated[
        str, typer.Option("--delivery_addr", "--delivery-addr", metavar="ADDR", help="Where our side goes.")
    ] = "",
    feerate: FeerateOption = None,
    block: BlockFlag = False,
    yes: YesFlag = False,
    idempotency_key: KeyOption = "",
) -> None:
    """As `channel close`. The channel's id or short id does as well as its funding transaction."""
    reference = either(channel, chan_point or funding_txid, "The channel")
    index = output_index_ if output_index_ is not None else output_index
    is_txid = chan_point is None and (funding_txid is not None or index is not None)
    channel_commands.close_channel(
        session,
        f"{reference}:{index or 0}" if is_txid else reference,
        force=force,
        even_if_outdated=even_if_outdated,
        address=delivery_addr,
        feerate=feerate,
        wait=block,
        yes=yes,
        key=idempotency_key,
    )


@dataclass(frozen=True, kw_only=True)
class LndInvoice(OptionGroup):
    """lncli's options for what an invoice says."""

    amt: Annotated[
        int | None, typer.Option("--amt", parser=any_msat_parser, metavar="AMT", help="0: any.", show_default=False)
    ] = None
    amt_msat: Annotated[int | None, typer.Option("--amt_msat", "--amt-msat", min=0, show_default=False)] = None
    memo: Annotated[str, typer.Option("--memo", metavar="TEXT", help="What it is for.", show_default=False)] = ""
    expiry: Annotated[int, typer.Option("--expiry", parser=duration_parser, metavar="TIME", show_default="1h")] = (
        3600  # seconds
    )
    description_hash: Annotated[
        bytes | None,
        typer.Option(
            "--description_hash",
            "--description-hash",
            parser=hash_parser("a description hash"),
            metavar="HEX",
            show_default=False,
        ),
    ] = None

    def asked(self, value: int | None) -> tuple[int | None, str, int, bytes | None]:
        """Amount (msat, None: any), description, expiry (seconds), description hash. The amount may be given as the
        argument `value` instead. Raises `CliError`."""
        given = [amount for amount in (value, self.amt, self.amt_msat) if amount is not None]
        if len(given) > 1:
            raise CliError("The amount is given more than once.", "", USAGE)
        return (given[0] if given else 0) or None, self.memo, self.expiry, self.description_hash


def addinvoice(
    session: Session,
    value: Annotated[int | None, typer.Argument(parser=any_msat_parser, metavar="[VALUE]", show_default=False)] = None,
    preimage_: PreimageText = None,
    invoice: LndInvoice = LndInvoice(),
    preimage: PreimageFlag = None,
    idempotency_key: KeyOption = "",
) -> None:
    """As `invoice create`."""
    invoice_commands.create_invoice(
        session,
        *invoice.asked(value),
        either(preimage_, preimage, "The preimage") if preimage_ is not None else preimage,
        idempotency_key,
    )


def addholdinvoice(
    session: Session,
    hash_: Annotated[
        bytes | None, typer.Argument(parser=hash_parser("a payment hash"), metavar="[HASH]", show_default=False)
    ] = None,
    value: Annotated[int | None, typer.Argument(parser=any_msat_parser, metavar="[AMT]", show_default=False)] = None,
    invoice: LndInvoice = LndInvoice(),
    cltv_delta: invoice_commands.CltvOption = None,
    idempotency_key: KeyOption = "",
) -> None:
    """As `invoice create --hold --hash`."""
    if hash_ is None:
        raise CliError("The payment hash is missing.", "Add --help to see how to write it.", USAGE)
    invoice_commands.create_invoice(
        session,
        *invoice.asked(value),
        None,
        idempotency_key,
        hold=True,
        payment_hash=hash_,
        cltv_delta=cltv_delta,
    )


def settleinvoice(
    session: Session,
    preimage_: PreimageText = None,
    preimage: PreimageFlag = None,
) -> None:
    """As `invoice settle`."""
    invoice_commands.settle_invoice(session, either(preimage_, preimage, "The preimage"), None)


def lookupinvoice(session: Session, rhash_: HashText = None, rhash: HashFlag = None) -> None:
    """As `invoice show`."""
    invoice_commands.show(session, either(rhash_, rhash, "The payment hash"))


def cancelinvoice(session: Session, rhash_: HashText = None, rhash: HashFlag = None) -> None:
    """As `invoice cancel`."""
    invoice_commands.cancel(session, either(rhash_, rhash, "The payment hash"))


def listinvoices(
    session: Session,
    limit: Annotated[int, typer.Option("--max_invoices", "--max-invoices", min=1, max=10_000)] = 100,
) -> None:
    """As `invoice list`."""
    invoice_commands.list_(session, limit)


def connect(
    session: Session,
    node: peer_commands.NodeArgument,
    timeout: Annotated[
        int, typer.Option("--timeout", parser=duration_parser, metavar="TIME", show_default="10s")
    ] = 10,  # seconds
    perm: Annotated[bool, typer.Option("--perm", help="Always so while there are channels.")] = False,
) -> None:
    """As `peer connect`."""
    peer_commands.connect_to(session, node, timeout_seconds=timeout)


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for name, function in (
        ("getinfo", node_commands.info),
        ("newaddress", wallet_commands.new_address),
        ("walletbalance", wallet_commands.balance),
        ("channelbalance", wallet_commands.balance),
        ("listunspent", wallet_commands.coins),
        ("listchaintxns", wallet_commands.transactions),
        ("sendcoins", sendcoins),
        ("connect", connect),
        ("disconnect", peer_commands.disconnect),
        ("listpeers", peer_commands.list_),
        ("openchannel", openchannel),
        ("listchannels", listchannels),
        ("pendingchannels", pendingchannels),
        ("closechannel", closechannel),
        ("addinvoice", addinvoice),
        ("addholdinvoice", addholdinvoice),
        ("settleinvoice", settleinvoice),
        ("lookupinvoice", lookupinvoice),
        ("cancelinvoice", cancelinvoice),
        ("listinvoices", listinvoices),
        ("fwdinghistory", forward_commands.forwards),
    ):
        command(app, name, panel=PANEL)(function)
