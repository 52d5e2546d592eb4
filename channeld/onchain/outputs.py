"""Every output of the commitment that ended a channel, and of HTLC transactions on top of it: what it is, who may take
it from which block on, how we take it, and who did (BOLT 5).

All is derived from what the channel knows and which transactions are in the chain: after a reorganisation it is derived
again from what is left.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from channeld.bolt.transactions import HtlcOutput, Side
from channeld.bolt.transactions.spec import Htlc
from channeld.bolt.transactions.sweep import Spend
from channeld.channel.state import CloseKind
from channeld.onchain.facts import SpentBy
from wallet.bitcoin import OutPoint

OutputKind = Literal["to_local", "to_remote", "anchor", "htlc", "htlc_tx", "trimmed_htlc", "closing", "unknown"]
"""`to_local`, `to_remote`: BOLT 3's names, from the commitment owner's view. `htlc_tx`: the output of an HTLC-timeout
or HTLC-success transaction. `trimmed_htlc`: an HTLC without an output in this commitment. `closing`: of a mutual
close."""


NEVER = (0, -1)
"""No blocks: the first and the last that a node missed."""


class Theirs(Struct, frozen=True, tag="theirs"):
    """Nothing for us to take; `why` is a sentence."""

    why: str


class Ours(Struct, frozen=True, tag="ours"):
    """Ours as it is, in the wallet; nothing is left to do."""

    why: str


class NeedsPreimage(Struct, frozen=True, tag="needs_preimage"):
    """An HTLC that we were offered: ours with its preimage, which we do not have; the peer's after `cltv_expiry`."""

    cltv_expiry: int


class Sweep(Struct, frozen=True, tag="sweep"):
    """Ours by a key: any transaction of ours may take it. `penalty`: by the revocation key."""

    spend: Spend
    penalty: bool = False


class HtlcTx(Struct, frozen=True, tag="htlc_tx"):
    """Ours by the HTLC transaction that the peer signed (64 bytes compact); with `preimage` it is HTLC-success."""

    output: HtlcOutput
    per_commitment_point: bytes
    remote_signature: bytes
    preimage: bytes = b""


Claim = Theirs | Ours | NeedsPreimage | Sweep | HtlcTx


class Output(Struct, frozen=True, kw_only=True):
    """One output (none for a trimmed HTLC). Heights are of blocks: our spend may be in one at `mature_height` or later
    (None: we cannot spend it), the other side's in one at `deadline_height` or later (None: never, or it is no loss).

    `final`: losing it is losing it; what the cheater takes by an HTLC transaction can still be taken from there.
    `owner` is whose it is by right. `settled`: an HTLC of ours whose preimage is known, so that its incoming side is
    safe whoever takes the output.
    """

    kind: OutputKind
    owner: Side
    amount_sat: int
    claim: Claim
    outpoint: OutPoint | None = None
    htlc: Htlc | None = None
    mature_height: int | None = None
    deadline_height: int | None = None
    final: bool = True
    settled: bool = False
    spent: SpentBy | None = None
    taker: Side | None = None

    @property
    def claimable(self) -> bool:
        """Whether we can take it, now or later, and nobody has."""
        return isinstance(self.claim, Sweep | HtlcTx) and self.spent is None

    @property
    def is_anchor(self) -> bool:
        """Whether it is an anchor, ours or theirs."""
        return self.kind == "anchor"


class Close(Struct, frozen=True):
    """The transaction in the chain that ended a channel, and its outputs. `commitment_number` is None for a mutual
    close."""

    kind: CloseKind
    height: int
    txid: bytes
    commitment_number: int | None
    outputs: tuple[Output, ...]
    preimages: dict[bytes, bytes] = {}
    """By payment hash: what the peer had to reveal."""

    def depth(self, height: int) -> int:
        """Confirmations at the tip `height`."""
        return height - self.height + 1


def while_off(output: Output, away: tuple[int, int]) -> str:
    """Part of a sentence, if an output was taken in a block that this node missed when it was off; else empty."""
    first, last = away
    if output.spent is None or not first <= output.spent.height <= last:
        return ""
    return f" in block {output.spent.height}, when this node was off (it missed blocks {first} to {last})"
