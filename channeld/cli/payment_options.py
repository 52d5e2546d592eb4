"""Options that the paying commands have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from channeld.cli.channel_commands import CHANNEL_HELP, resolve
from channeld.cli.command import OptionGroup, any_msat_parser, duration_parser, node_parser
from channeld.cli.ids import NodeAddress
from channeld.cli.session import Session
from channeld.defaults import default_fee_limit_msat

FEE_LIMIT_HELP = "The most that the payment may cost besides."
FEE_LIMIT_DEFAULT = "1 % of the amount, at least 10 sat"
TIMEOUT_SECONDS = 60

FeeLimitOption = Annotated[
    int | None,
    typer.Option(
        "--max-fee",
        parser=any_msat_parser,
        metavar="AMOUNT",
        help=FEE_LIMIT_HELP,
        show_default=FEE_LIMIT_DEFAULT,
    ),
]
TimeoutOption = Annotated[
    int,
    typer.Option(
        "--timeout",
        parser=duration_parser,
        metavar="TIME",
        show_default="60s",
        help="How long new ways are tried, and how long to wait; what is out then goes on.",
    ),
]
CltvOption = Annotated[
    int | None,
    typer.Option(
        "--max-cltv", min=1, metavar="BLOCKS", help="For how long money may be locked at most.", show_default="2000"
    ),
]
PartsOption = Annotated[
    int | None, typer.Option("--max-parts", min=1, help="Into how many parts it may be split.", show_default="16")
]
OutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--out",
        metavar="CHANNEL",
        help=f"It leaves by this channel. {CHANNEL_HELP} Again for more to choose from.",
        show_default=False,
    ),
]
LastHopOption = Annotated[
    list[NodeAddress] | None,
    typer.Option(
        "--last-hop",
        parser=node_parser,
        metavar="NODE_ID",
        help="The last hop comes from this node. Again for more to choose from.",
        show_default=False,
    ),
]
StreamFlag = Annotated[
    bool, typer.Option("--stream", help="With --json: a line for every attempt as it begins and ends, too.")
]


@dataclass(frozen=True, kw_only=True)
class CostLimits(OptionGroup):
    """What a payment may cost: in money, in time, and in how long money is locked. None: the daemon's own limit."""

    max_fee_msat: FeeLimitOption = None
    timeout_seconds: TimeoutOption = TIMEOUT_SECONDS
    max_cltv_blocks: CltvOption = None

    def put(self, session: Session, request: Any, fee_limit_msat: int | None) -> None:
        """Into a request that has fields for them."""
        if fee_limit_msat is not None:
            request.max_fee_msat = fee_limit_msat
        if self.max_cltv_blocks is not None:
            request.max_cltv_blocks = self.max_cltv_blocks

    def fee_limit_msat(self, amount_msat: int) -> int:
        """As the daemon would choose it, so that it can be told beforehand."""
        return default_fee_limit_msat(amount_msat) if self.max_fee_msat is None else self.max_fee_msat


@dataclass(frozen=True, kw_only=True)
class PartLimits(CostLimits):
    """And into how many parts it may be split."""

    max_parts: PartsOption = None

    def put(self, session: Session, request: Any, fee_limit_msat: int | None) -> None:
        super().put(session, request, fee_limit_msat)
        if self.max_parts is not None:
            request.max_parts = self.max_parts


@dataclass(frozen=True, kw_only=True)
class WayLimits(CostLimits):
    """And by which channels and nodes it may go. None: by any."""

    out: OutOption = None
    last_hops: LastHopOption = None

    def put(self, session: Session, request: Any, fee_limit_msat: int | None) -> None:
        super().put(session, request, fee_limit_msat)
        request.outgoing_channel_ids.extend(resolve(session, channel) for channel in self.out or ())
        request.last_hops.extend(node.node_id for node in self.last_hops or ())


@dataclass(frozen=True, kw_only=True)
class Limits(WayLimits, PartLimits):
    """All of them."""
