"""Spending what a unilateral close leaves: delayed outputs, penalties, HTLCs, `to_remote`, anchors (BOLT 3 and BOLT 5).

A `Spend` says everything about one output that one of our keys can spend. Any transaction may take it as an input,
alone, with others, or with a wallet's inputs that pay the fee; it is signed once the transaction is complete
(SIGHASH_ALL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from channeld.bolt.keys import CommitmentKeys
from channeld.bolt.transactions import fees
from channeld.bolt.transactions.htlc import HtlcOutput
from channeld.bolt.transactions.onchain import CommitmentOutputs, HtlcMatch
from channeld.bolt.transactions.scripts import anchor_script, to_local_script, to_remote_script
from channeld.bolt.transactions.spec import CommitmentParams
from wallet.bitcoin.encoding import compact_size, hash160, sha256
from wallet.bitcoin.script import p2wpkh_script_code
from wallet.bitcoin.secp import compact_to_der, sign
from wallet.bitcoin.sighash import SIGHASH_ALL, SighashCache, segwit_v0_sighash
from wallet.bitcoin.tx import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut

SpendKey = Literal["delayed", "revocation", "payment", "htlc", "funding", "none"]
"""Which of our keys signs: `ChannelSecrets.secret_for` finds it. "none": the witness has an empty signature."""

ANYONE_CAN_SPEND_ANCHOR_BLOCKS = 16


class Uneconomical(ValueError):
    """What the inputs hold would not pay for spending them at this fee rate."""


class Spend(msgspec.Struct, frozen=True):
    """An output that we can spend, and how. A plain value, which may be stored.

    `sequence` is the input's nSequence: a relative delay in blocks where the script demands one, else 0xFFFFFFFD.
    `locktime` is the least nLockTime of the transaction (blocks, 0: any). `witness_tail` follows the signature.
    `per_commitment_point` is that of the commitment, empty where the key does not depend on it.
    """

    outpoint: OutPoint
    output: TxOut
    witness_script: bytes
    key: SpendKey
    per_commitment_point: bytes
    sequence: int
    locktime: int
    witness_tail: tuple[bytes, ...]

    @property
    def input_weight(self) -> int:
        """Expected weight of the input with its witness, the signature at its largest."""
        items = [fees.SIGNATURE_WEIGHT if self.key != "none" else 0, *map(len, self.witness_tail)]
        if self.witness_script:
            items.append(len(self.witness_script))
        return fees.TXIN_WEIGHT + 1 + sum(len(compact_size(size)) + size for size in items)

    def txin(self) -> TxIn:
        """The input, without witness."""
        return TxIn(self.outpoint, b"", self.sequence)

    def sighash(self, tx: Tx, index: int, cache: SighashCache | None = None) -> bytes:
        """What input `index` of `tx` signs, 32 bytes."""
        code = self.witness_script or p2wpkh_script_code(hash160(self.witness_tail[0]))
        return segwit_v0_sighash(tx, index, code, self.output.value_sat, SIGHASH_ALL, cache)

    def witness(self, signature: bytes) -> tuple[bytes, ...]:
        """The witness with a 64-byte compact signature (empty where the key is "none")."""
        first = compact_to_der(signature) + bytes((SIGHASH_ALL,)) if signature else b""
        script = (self.witness_script,) if self.witness_script else ()
        return (first, *self.witness_tail, *script)


def delayed_output(params: CommitmentParams, keys: CommitmentKeys, outpoint: OutPoint, output: TxOut) -> Spend:
    """Our own output of our commitment, or of our HTLC transaction, after `to_self_delay` blocks."""
    delay = params.local_to_self_delay
    script = to_local_script(keys.revocation_pubkey, delay, keys.owner_delayed_pubkey)
    return Spend(outpoint, output, script, "delayed", keys.per_commitment_point, delay, 0, (b"",))


def revoked_output(params: CommitmentParams, keys: CommitmentKeys, outpoint: OutPoint, output: TxOut) -> Spend:
    """The peer's own output of its revoked commitment, or of an HTLC transaction on top of it: the penalty."""
    script = to_local_script(keys.revocation_pubkey, params.remote_to_self_delay, keys.owner_delayed_pubkey)
    return Spend(outpoint, output, script, "revocation", keys.per_commitment_point, SEQUENCE_RBF, 0, (b"\x01",))


def revoked_htlc(keys: CommitmentKeys, match: HtlcMatch) -> Spend:
    """An HTLC output, of either direction, in the peer's revoked commitment: the penalty."""
    return _spend_htlc(match, "revocation", keys, SEQUENCE_RBF, keys.revocation_pubkey)


def remote_htlc_with_preimage(
    params: CommitmentParams, keys: CommitmentKeys, match: HtlcMatch, preimage: bytes
) -> Spend:
    """An HTLC that the peer offered, in the peer's commitment: ours with the 32-byte payment preimage."""
    if not match.offered_by_owner or sha256(preimage) != match.htlc.payment_hash:
        raise ValueError("its preimage claims an HTLC that the peer offered")
    return _spend_htlc(match, "htlc", keys, _htlc_sequence(params), preimage)


def remote_htlc_after_timeout(params: CommitmentParams, keys: CommitmentKeys, match: HtlcMatch) -> Spend:
    """An HTLC that we offered, in the peer's commitment: ours again from `cltv_expiry` on."""
    if match.offered_by_owner:
        raise ValueError("only an HTLC that we offered comes back to us")
    return _spend_htlc(match, "htlc", keys, _htlc_sequence(params), b"", match.htlc.cltv_expiry)


def to_remote_output(params: CommitmentParams, outpoint: OutPoint, output: TxOut) -> Spend:
    """Our balance in the peer's commitment, revoked or not: with anchors after one block."""
    basepoint = params.local.payment_basepoint
    if params.anchors:
        return Spend(outpoint, output, to_remote_script(basepoint), "payment", b"", 1, 0, ())
    return Spend(outpoint, output, b"", "payment", b"", SEQUENCE_RBF, 0, (basepoint,))


def anchor_output(params: CommitmentParams, outpoint: OutPoint, output: TxOut) -> Spend:
    """Our anchor in either side's commitment: with it a child pays for the commitment."""
    return Spend(outpoint, output, anchor_script(params.local.funding_pubkey), "funding", b"", SEQUENCE_RBF, 0, ())


def old_anchor_output(funding_pubkey: bytes, outpoint: OutPoint, output: TxOut) -> Spend:
    """Any anchor, 16 blocks after its confirmation, without a key."""
    return Spend(outpoint, output, anchor_script(funding_pubkey), "none", b"", ANYONE_CAN_SPEND_ANCHOR_BLOCKS, 0, ())


def penalties(params: CommitmentParams, found: CommitmentOutputs) -> list[Spend]:
    """Everything in the peer's revoked commitment that its revocation key gives us: `to_local` and all HTLCs."""
    spends = [revoked_htlc(found.keys, match) for match in found.htlcs]
    if found.to_local is not None:
        spends.insert(0, revoked_output(params, found.keys, *found.to_local))
    return spends


def htlc_batch_tx(outputs: Sequence[HtlcOutput]) -> Tx:
    """Several HTLC transactions of our commitment in one, input i paying output i, without witness (`option_anchors`
    only).

    It pays no fee: add a wallet's inputs and outputs after these (BOLT 5, "Generation of HTLC Transactions"), then sign
    with `HtlcOutput.owner_sighash(tx, index)`. Raises ValueError if locktimes differ: the peer has signed them.
    """
    if not outputs or any(output.context.sighash_type == SIGHASH_ALL for output in outputs):
        raise ValueError("only HTLC transactions of option_anchors can be combined")
    if len({output.htlc_tx_locktime for output in outputs}) > 1:
        raise ValueError("HTLC transactions with different locktimes cannot be combined")
    single = [output.htlc_tx() for output in outputs]
    return Tx(2, tuple(tx.inputs[0] for tx in single), tuple(tx.outputs[0] for tx in single), single[0].locktime)


def sweep_weight(spends: Sequence[Spend], script_pubkey: bytes) -> int:
    """Expected weight of a transaction that spends all `spends` to one output."""
    output = 8 + len(compact_size(len(script_pubkey))) + len(script_pubkey)
    common = 4 * (4 + len(compact_size(len(spends))) + 1 + output + 4) + 2
    return common + sum(spend.input_weight for spend in spends)


def sweep_tx(spends: Sequence[Spend], script_pubkey: bytes, feerate_per_kw: int, locktime: int = 0) -> Tx:
    """A transaction that spends all `spends` to `script_pubkey`, without witnesses; the fee is taken from the amount.

    `locktime` (blocks) is raised to what the spends demand. Raises Uneconomical if less than the dust limit would be
    left.
    """
    fee_sat = -(-sweep_weight(spends, script_pubkey) * feerate_per_kw // 1000)
    amount_sat = sum(spend.output.value_sat for spend in spends) - fee_sat
    if fees.is_dust(amount_sat, script_pubkey):
        raise Uneconomical(f"a fee of {fee_sat} sat leaves {amount_sat} sat")
    return Tx(
        2,
        tuple(spend.txin() for spend in spends),
        (TxOut(amount_sat, script_pubkey),),
        max([locktime, *(spend.locktime for spend in spends)]),
    )


def sign_spends(tx: Tx, spends: Sequence[Spend], secrets: Sequence[bytes], first_index: int = 0) -> Tx:
    """`tx` with the witnesses of consecutive inputs, from `first_index` on. One secret each (empty where the key is
    "none")."""
    cache = SighashCache(tx)
    inputs = list(tx.inputs)
    for index, (spend, secret) in enumerate(zip(spends, secrets, strict=True), first_index):
        if inputs[index].outpoint != spend.outpoint or inputs[index].sequence != spend.sequence:
            raise ValueError(f"input {index} is not the spend of {spend.outpoint}")
        signature = sign(secret, spend.sighash(tx, index, cache)) if spend.key != "none" else b""
        inputs[index] = inputs[index]._replace(witness=spend.witness(signature))
    return tx.replace(inputs=tuple(inputs))


def _htlc_sequence(params: CommitmentParams) -> int:
    return 1 if params.anchors else SEQUENCE_RBF


def _spend_htlc(
    match: HtlcMatch, key: SpendKey, keys: CommitmentKeys, sequence: int, item: bytes, locktime: int = 0
) -> Spend:
    point = keys.per_commitment_point
    return Spend(match.outpoint, match.output, match.witness_script, key, point, sequence, locktime, (item,))
