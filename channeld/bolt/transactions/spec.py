"""What a commitment is made from: the channel's constants, its balances and HTLCs, and which HTLCs are too small.

`local` and `remote` are this node and its peer. A commitment belongs to a *side*, its owner.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

import msgspec

from channeld.bolt.keys import ChannelKeys
from channeld.bolt.transactions import fees
from channeld.bolt.transactions.scripts import funding_script
from wallet.bitcoin.tx import OutPoint

Side = Literal["local", "remote"]
"""Whose commitment: ours to broadcast, or the peer's."""


class Htlc(msgspec.Struct, frozen=True, order=True, cache_hash=True, array_like=True):
    """An HTLC in a commitment. `offered` is by local (this node); ids are unique per direction; `cltv_expiry`
    blocks."""

    id: int
    amount_msat: int
    payment_hash: bytes
    cltv_expiry: int
    offered: bool


class CommitmentSpec(msgspec.Struct, frozen=True):
    """What a commitment pays, from local's view whichever side owns it. Balances are without the HTLCs and before
    fees."""

    htlcs: frozenset[Htlc]
    feerate_per_kw: int
    to_local_msat: int
    to_remote_msat: int


class CommitmentParams(msgspec.Struct, frozen=True, cache_hash=True):
    """What stays the same for all commitments that spend one funding output.

    `local_to_self_delay` is how long (blocks) local must wait for its own outputs: the value that *remote* sent in
    `open_channel` or `accept_channel`. `anchors` is `option_anchors`; without it the channel is
    `option_static_remotekey`.
    """

    funding_outpoint: OutPoint
    funding_sat: int
    local: ChannelKeys
    remote: ChannelKeys
    local_is_opener: bool
    local_dust_limit_sat: int
    remote_dust_limit_sat: int
    local_to_self_delay: int
    remote_to_self_delay: int
    anchors: bool

    def owner_and_other(self, side: Side) -> tuple[ChannelKeys, ChannelKeys]:
        """(owner's, other's) keys of a commitment that belongs to `side`."""
        return (self.local, self.remote) if side == "local" else (self.remote, self.local)

    def dust_limit_sat(self, side: Side) -> int:
        """`dust_limit_satoshis` that applies to the commitment of `side`."""
        return self.local_dust_limit_sat if side == "local" else self.remote_dust_limit_sat

    def to_self_delay(self, side: Side) -> int:
        """Blocks that the owner of the commitment of `side` waits for its own outputs."""
        return self.local_to_self_delay if side == "local" else self.remote_to_self_delay

    def funding_script(self) -> bytes:
        """The witness script of the funding output."""
        return funding_script(self.local.funding_pubkey, self.remote.funding_pubkey)

    def obscuring_factor(self) -> int:
        """The 48 bits that hide the commitment number (BOLT 3, "Commitment Transaction")."""
        opener, accepter = (self.local, self.remote) if self.local_is_opener else (self.remote, self.local)
        return int.from_bytes(sha256(opener.payment_basepoint + accepter.payment_basepoint).digest()[26:], "big")


def trim_limit_sat(params: CommitmentParams, feerate_per_kw: int, side: Side, offered_by_owner: bool) -> int:
    """The least amount (satoshi) of an HTLC that gets an output in the commitment of `side` (BOLT 3, "Trimmed
    Outputs")."""
    fee = fees.htlc_timeout_fee_sat if offered_by_owner else fees.htlc_success_fee_sat
    return params.dust_limit_sat(side) + fee(feerate_per_kw, params.anchors)


def is_trimmed(params: CommitmentParams, htlc: Htlc, feerate_per_kw: int, side: Side) -> bool:
    """Whether the HTLC has no output in the commitment of `side` at this fee rate."""
    limit = trim_limit_sat(params, feerate_per_kw, side, htlc.offered == (side == "local"))
    return htlc.amount_msat // 1000 < limit


def num_untrimmed(params: CommitmentParams, spec: CommitmentSpec, side: Side) -> int:
    """How many HTLCs have an output in the commitment of `side`."""
    offered_limit = trim_limit_sat(params, spec.feerate_per_kw, side, True) * 1000
    received_limit = trim_limit_sat(params, spec.feerate_per_kw, side, False) * 1000
    owner_is_local = side == "local"
    return sum(
        htlc.amount_msat >= (offered_limit if htlc.offered == owner_is_local else received_limit) for htlc in spec.htlcs
    )


def commitment_fee_sat(params: CommitmentParams, spec: CommitmentSpec, side: Side) -> int:
    """Base fee of the commitment of `side`, satoshi (BOLT 3, "Fee Calculation")."""
    return fees.commit_tx_fee_sat(spec.feerate_per_kw, num_untrimmed(params, spec, side), params.anchors)
