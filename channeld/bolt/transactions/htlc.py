"""HTLC outputs of a commitment, and the HTLC-timeout and HTLC-success transactions that spend them (BOLT 3)."""

from __future__ import annotations

import msgspec

from channeld.bolt.transactions.spec import Htlc
from wallet.bitcoin.script import p2wsh
from wallet.bitcoin.secp import compact_to_der
from wallet.bitcoin.sighash import SIGHASH_ALL, segwit_v0_sighash
from wallet.bitcoin.tx import OutPoint, Tx, TxIn, TxOut


class HtlcContext(msgspec.Struct, frozen=True):
    """What the HTLC transactions of one commitment share."""

    commitment_txid: bytes
    script_pubkey: bytes
    """Where they pay: the same script as the commitment's `to_local`."""
    sequence: int
    sighash_type: int
    """Of the other side's signature: with anchors it leaves room for more inputs and outputs."""


class HtlcOutput(msgspec.Struct, frozen=True):
    """An HTLC's output in a commitment, and what its HTLC transaction pays the owner (satoshi, fee subtracted).

    `htlc_tx_sighash` (32 bytes) is what the *other* side signs: SIGHASH_ALL, or SIGHASH_SINGLE|ANYONECANPAY with
    anchors.
    """

    htlc: Htlc
    offered_by_owner: bool
    output_index: int
    amount_sat: int
    htlc_tx_amount_sat: int
    witness_script: bytes
    htlc_tx_sighash: bytes
    context: HtlcContext

    @property
    def outpoint(self) -> OutPoint:
        """This output of the commitment."""
        return OutPoint(self.context.commitment_txid, self.output_index)

    @property
    def script_pubkey(self) -> bytes:
        """P2WSH of `witness_script`."""
        return p2wsh(self.witness_script)

    @property
    def htlc_tx_locktime(self) -> int:
        """`cltv_expiry` for HTLC-timeout, 0 for HTLC-success."""
        return self.htlc.cltv_expiry if self.offered_by_owner else 0

    def htlc_tx(self) -> Tx:
        """The owner's HTLC-timeout (if it offered the HTLC) or HTLC-success transaction, without witness."""
        return Tx(
            2,
            (TxIn(self.outpoint, b"", self.context.sequence),),
            (TxOut(self.htlc_tx_amount_sat, self.context.script_pubkey),),
            self.htlc_tx_locktime,
        )

    def owner_sighash(self, tx: Tx | None = None, index: int = 0) -> bytes:
        """What the owner signs, always SIGHASH_ALL (BOLT 5, "Generation of HTLC Transactions").

        With anchors the transaction pays no fee by itself: give `tx`, with inputs and outputs added, and the input's
        index.
        """
        return segwit_v0_sighash(tx or self.htlc_tx(), index, self.witness_script, self.amount_sat, SIGHASH_ALL)

    def witness(self, other_signature: bytes, owner_signature: bytes, preimage: bytes = b"") -> tuple[bytes, ...]:
        """The witness of the HTLC transaction's input, from compact signatures; `preimage` for HTLC-success only."""
        if bool(preimage) == self.offered_by_owner:
            raise ValueError("HTLC-success takes a payment preimage, HTLC-timeout none")
        return (
            b"",
            compact_to_der(other_signature) + bytes((self.context.sighash_type,)),
            compact_to_der(owner_signature) + bytes((SIGHASH_ALL,)),
            preimage,
            self.witness_script,
        )
