"""A channel's end as the operator sees it."""

from __future__ import annotations

from channeld.node.interface import ChannelView, ClosedChannelView, HtlcView, OutputView
from channeld.onchain.report import CloseReport, OutputReport


def closed_channel_view(channel: ChannelView, told: CloseReport) -> ClosedChannelView:
    """Everything that the monitor knows of it."""
    return ClosedChannelView(
        channel=channel,
        kind=told.kind,
        closing_txid=told.txid,
        height=told.height,
        commitment_number=told.commitment_number,
        commitment_fee_sat=told.commitment_fee_sat,
        irrevocable_height=told.irrevocable_height,
        over=told.over,
        outputs=tuple(_output(output) for output in told.outputs),
    )


def _output(output: OutputReport) -> OutputView:
    return OutputView(
        kind=output.kind,
        owner=output.owner,
        amount_sat=output.amount_sat,
        status=output.status,
        status_text=output.status_text,
        txid=None if output.outpoint is None else output.outpoint.txid,
        vout=0 if output.outpoint is None else output.outpoint.vout,
        taken_by=output.taken_by,
        spending_txid=output.spending_txid,
        spent_height=output.spent_height,
        fee_sat=output.fee_sat,
        free_height=output.free_height,
        deadline_height=output.deadline_height,
        htlc=output_htlc(output),
    )


def output_htlc(output: OutputReport) -> HtlcView | None:
    """The HTLC behind an output."""
    htlc = output.htlc
    if htlc is None:
        return None
    return HtlcView(
        id=max(0, htlc.id),  # an old one's number was not kept
        incoming=not htlc.offered,
        amount_msat=htlc.amount_msat,
        payment_hash=htlc.payment_hash,
        cltv_expiry=htlc.cltv_expiry,
    )
