"""Transactions made of plans. Signatures are deterministic (RFC 6979): the same plan gives the same transaction."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from channeld.bolt.transactions import ChannelSecrets
from channeld.bolt.transactions.sweep import Spend, htlc_batch_tx, sign_spends, sweep_tx, sweep_weight
from channeld.onchain.batch import Batch
from channeld.onchain.known import Known
from channeld.onchain.outputs import HtlcTx, Output, Sweep
from channeld.onchain.plans import Attempt, Plan, claim_weight
from wallet.bitcoin import Tx
from wallet.bitcoin.secp import sign

HTLC_TX_FRAME_WEIGHT = 4 * (4 + 1 + 1 + 43 + 4) + 2
"""An anchor channel's HTLC transaction without its input."""


def attempt_of(plan: Plan, tx: Tx, fee_sat: int, height: int, reservation: int = 0) -> Attempt:
    """A plan that became a complete transaction."""
    return Attempt(tx.txid(), tx.serialize(), plan.group, plan.outpoints, fee_sat, tx.weight(), height, reservation)


def attempts_of(batch: Batch, tx: Tx, height: int) -> list[Attempt]:
    """A batch that became a complete transaction, as each of its channels sees it."""
    plans = [part.plan for part in batch.parts]
    fee_sat = sum(o.amount_sat for plan in plans for o in plan.outputs) - sum(o.value_sat for o in tx.outputs)
    shares = batch.shares_sat(fee_sat)
    return [
        replace(attempt_of(plan, tx, fee_sat, height), others=len(plans) - 1, share_sat=share)
        for plan, share in zip(plans, shares, strict=True)
    ]


def build_sweep(plan: Plan, known: Known, number: int | None, signer: ChannelSecrets, script: bytes) -> Tx:
    """All of a plan's outputs to `script`; `number` is the commitment's, for the secret that revoked it.

    The fee is what the plan's rate gives, at least its `min_fee_sat`. Raises Uneconomical.
    """
    spends = [_spend(output) for output in plan.outputs]
    weight = sweep_weight(spends, script)
    rate = max(plan.feerate_per_kw, -(-plan.min_fee_sat * 1000 // weight))
    tx = sweep_tx(spends, script, rate)
    revoked = any(spend.key == "revocation" for spend in spends)
    secret = known.secrets.secret(number) if revoked and number is not None else b""
    secrets = [signer.secret_for(spend, secret if spend.key == "revocation" else b"") for spend in spends]
    return sign_spends(tx, spends, secrets)


def build_batch(batch: Batch, signers: Sequence[ChannelSecrets], script: bytes) -> Tx:
    """All outputs of a batch to `script`; one signer for each of its parts. Raises Uneconomical."""
    owned = [(_spend(o), signer) for part, signer in zip(batch.parts, signers, strict=True) for o in part.plan.outputs]
    spends = [spend for spend, _ in owned]
    weight = sweep_weight(spends, script)
    rate = max(batch.feerate_per_kw, -(-batch.min_fee_sat * 1000 // weight))
    tx = sweep_tx(spends, script, rate)
    return sign_spends(tx, spends, [signer.secret_for(spend) for spend, signer in owned])


def _spend(output: Output) -> Spend:
    assert isinstance(output.claim, Sweep)
    return output.claim.spend


def build_presigned(plan: Plan, signer: ChannelSecrets) -> tuple[Tx, int]:
    """(HTLC transaction as the peer signed it, its fee): without `option_anchors` nothing can be added to it."""
    (output,) = plan.outputs
    assert isinstance(output.claim, HtlcTx)
    tx = output.claim.output.htlc_tx()
    return sign_htlc_inputs(plan, tx, signer), output.amount_sat - tx.outputs[0].value_sat


def htlc_frame(plan: Plan) -> Tx:
    """The HTLC transactions of a plan in one, input i paying output i, to be followed by the wallet's inputs and its
    change (BOLT 5, "MUST combine it with inputs contributing sufficient fee")."""
    return htlc_batch_tx([output.claim.output for output in plan.outputs if isinstance(output.claim, HtlcTx)])


def htlc_input_weight(output: Output) -> int:
    """Expected weight of the input that spends an HTLC output by its HTLC transaction, with anchors."""
    return claim_weight(output) - HTLC_TX_FRAME_WEIGHT


def sign_htlc_inputs(plan: Plan, tx: Tx, signer: ChannelSecrets) -> Tx:
    """`tx`, complete but for the witnesses of its first inputs, which are the plan's HTLC outputs.

    BOLT 5: "The local signature MUST use `SIGHASH_ALL`, otherwise anyone can attach additional inputs and outputs to
    the tx."
    """
    signed = tx
    for index, output in enumerate(plan.outputs):
        claim = output.claim
        assert isinstance(claim, HtlcTx)
        own = sign(signer.htlc_secret(claim.per_commitment_point), claim.output.owner_sighash(tx, index))
        signed = signed.with_witness(index, claim.output.witness(claim.remote_signature, own, claim.preimage))
    return signed


def sign_spend_input(tx: Tx, output: Output, signer: ChannelSecrets) -> Tx:
    """`tx`, complete but for the witness of its first input, which spends `output` (an anchor)."""
    spend = _spend(output)
    return sign_spends(tx, [spend], [signer.secret_for(spend)])
