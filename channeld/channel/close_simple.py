"""Closing together with `option_simple_close` (BOLT 2, "Closing Negotiation: `closing_complete` and `closing_sig`").

Each side has the other sign a transaction that pays the fee which it chose itself, as often as it likes.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from channeld.bolt.messages import ClosingComplete, ClosingSig
from channeld.bolt.transactions.closing import (
    ClosingBalances,
    ClosingVariant,
    NoClosingTransaction,
    closee_variant,
    closer_variants,
    closing_tx_weight,
    simple_closing_tx,
)
from channeld.bolt.transactions.fees import weight_fee_sat
from channeld.bolt.transactions.funding import funding_sighash
from channeld.bolt.transactions.signing import complete
from channeld.channel.closing_scripts import (
    MAX_CLOSING_TXS,
    MAX_OWN_CLOSING_TXS,
    check_remote_script,
    with_closing_tx,
)
from channeld.channel.effects import Broadcast, Effect, Send
from channeld.channel.env import Env
from channeld.channel.events import CommandRejected, ProtocolViolation
from channeld.channel.state import Live, NegotiatingSimple, SentClosingComplete, Transition
from wallet.bitcoin import Tx
from wallet.bitcoin.secp import verify

VARIANTS: tuple[ClosingVariant, ...] = ("closer_output_only", "closee_output_only", "closer_and_closee_outputs")

# --- as closer ----------------------------------------------------------------------------------------------------


def propose(state: NegotiatingSimple, env: Env) -> tuple[NegotiatingSimple, list[Effect]]:
    """Sends `closing_complete`, unless our balance cannot pay for a transaction that would be relayed: then the peer's
    will have to do."""
    params, spec = state.params, state.commitments.local.spec
    balances = _balances(state, state.remote_script)
    weight = closing_tx_weight(state.local_script, state.remote_script)
    fee_sat = min(weight_fee_sat(weight, state.closing_feerate_per_kw), balances.local_sat)
    if fee_sat < weight_fee_sat(weight, env.policy.min_feerate_per_kw):
        return state, []
    try:
        variants = closer_variants((spec.to_local_msat, spec.to_remote_msat), balances, fee_sat=fee_sat)
    except NoClosingTransaction:
        return state, []
    sent = SentClosingComplete(state.local_script, state.remote_script, fee_sat, 0, variants)
    signatures: dict[str, Any] = {}
    for variant in variants:
        tx = _tx(state, balances, sent.fee_sat, sent.locktime, variant, local_is_closer=True)
        signatures[variant] = env.signer.sign_funding_input(params.commitment, tx)
    message = ClosingComplete(
        params.channel_id, state.local_script, state.remote_script, fee_sat, sent.locktime, **signatures
    )
    return replace(state, sent=sent), [Send(message)]


def close_again(state: NegotiatingSimple, script: bytes, feerate_per_kw: int, env: Env) -> Transition:
    """Another transaction, with a higher fee or another script of ours. Raises CommandRejected."""
    if state.sent is not None and isinstance(state.link, Live):
        # BOLT 2, "If it wants to send another `closing_complete` ...: MUST wait until it has received `closing_sig`
        # first."
        raise CommandRejected("not_ready", "the peer has not answered the last closing transaction yet")
    state = replace(state, local_script=script, closing_feerate_per_kw=feerate_per_kw)
    if not isinstance(state.link, Live):
        return Transition(state)  # said with `shutdown` when the peer is back
    state, effects = propose(state, env)
    if not effects:
        raise CommandRejected("insufficient_balance", "our balance cannot pay for a closing transaction")
    return Transition(state, tuple(effects))


def on_closing_sig(state: NegotiatingSimple, message: ClosingSig, env: Env) -> Transition:
    """The peer signed our transaction: it is published."""
    sent = state.sent
    if sent is None:
        raise ProtocolViolation("closing_sig without closing_complete", "warning")
    # BOLT 2, "If `closer_scriptpubkey`, `closee_scriptpubkey`, `fee_satoshis` or `locktime` don't match what was sent"
    answered = (message.closer_scriptpubkey, message.closee_scriptpubkey, message.fee_satoshis, message.locktime)
    if answered != (sent.closer_script, sent.closee_script, sent.fee_sat, sent.locktime):
        raise ProtocolViolation("closing_sig does not match our closing_complete", "warning")
    signatures = _signatures(message)
    # BOLT 2, "If `tlvs` does not contain exactly one signature" "If `tlvs` does not contain one of the TLV fields sent"
    if len(signatures) != 1 or not set(signatures) <= set(sent.variants):
        raise ProtocolViolation("closing_sig has other signatures than the one it should have", "warning")
    ((variant, signature),) = signatures.items()
    tx = _tx(state, _balances(state, sent.closee_script), sent.fee_sat, sent.locktime, variant, local_is_closer=True)
    state, broadcast = _publish(replace(state, sent=None), tx, signature, env, "closing_sig", MAX_OWN_CLOSING_TXS)
    return Transition(state, (broadcast,))


# --- as closee ----------------------------------------------------------------------------------------------------


def on_closing_complete(state: NegotiatingSimple, message: ClosingComplete, env: Env) -> Transition:
    """The peer wants its transaction signed; it pays for it, so it is."""
    params = state.params
    if message.closee_scriptpubkey != state.local_script:
        # BOLT 2, "If `closee_scriptpubkey` does not match the last script it sent: SHOULD ignore `closing_complete`.
        # SHOULD send a `warning`. SHOULD close the connection."
        raise ProtocolViolation("closing_complete does not pay to our last script", "warning")
    # BOLT 2, "If `closer_scriptpubkey` is invalid (as detailed in the `shutdown` requirements)"
    check_remote_script(state, message.closer_scriptpubkey, env)
    balances = _balances(state, message.closer_scriptpubkey)
    if message.fee_satoshis > balances.remote_sat:
        # BOLT 2, "If `fee_satoshis` is greater than the closer's outstanding balance"
        raise ProtocolViolation("closing_complete: the fee exceeds the closer's balance", "warning")
    signatures = _signatures(message)
    variant = closee_variant(balances, frozenset(signatures))
    if variant not in signatures:
        # BOLT 2, "If the selected signature field does not exist"
        raise ProtocolViolation(f"closing_complete: the signature {variant} is missing", "warning")
    tx = _tx(state, balances, message.fee_satoshis, message.locktime, variant, local_is_closer=False)
    # BOLT 2, "MUST use `closer_scriptpubkey` for its own future `closing_complete` messages."
    state = replace(state, remote_script=message.closer_scriptpubkey)
    state, broadcast = _publish(state, tx, signatures[variant], env, "closing_complete", MAX_CLOSING_TXS)
    # BOLT 2, "MUST send `closing_sig` with a single valid signature in the same TLV field as the `closing_complete`."
    own: dict[str, Any] = {variant: env.signer.sign_funding_input(params.commitment, tx)}
    answer = ClosingSig(
        params.channel_id,
        message.closer_scriptpubkey,
        message.closee_scriptpubkey,
        message.fee_satoshis,
        message.locktime,
        **own,
    )
    return Transition(state, (Send(answer), broadcast))


# --- both ---------------------------------------------------------------------------------------------------------


def _balances(state: NegotiatingSimple, remote_script: bytes) -> ClosingBalances:
    spec = state.commitments.local.spec
    return ClosingBalances.from_msat(spec.to_local_msat, state.local_script, spec.to_remote_msat, remote_script)


def _signatures(message: ClosingComplete | ClosingSig) -> dict[ClosingVariant, bytes]:
    return {name: signature for name in VARIANTS if (signature := getattr(message, name)) is not None}


def _tx(
    state: NegotiatingSimple,
    balances: ClosingBalances,
    fee_sat: int,
    locktime: int,
    variant: ClosingVariant,
    *,
    local_is_closer: bool,
) -> Tx:
    return simple_closing_tx(
        state.params.funding_outpoint,
        balances,
        local_is_closer=local_is_closer,
        fee_sat=fee_sat,
        locktime=locktime,
        variant=variant,
    )


def _publish(
    state: NegotiatingSimple, tx: Tx, remote_signature: bytes, env: Env, message: str, most: int
) -> tuple[NegotiatingSimple, Broadcast]:
    commitment = state.params.commitment
    digest = funding_sighash(tx, 0, commitment.funding_script(), commitment.funding_sat)
    if not verify(commitment.remote.funding_pubkey, digest, remote_signature):
        # BOLT 2, "If the signature field is not valid for the corresponding closing transaction"
        raise ProtocolViolation(f"{message}: the signature is not valid", "warning", tx.serialize())
    signed = complete(commitment, tx, env.signer.sign_funding_input(commitment, tx), remote_signature)
    return with_closing_tx(state, signed, most), Broadcast(signed, "mutual close")
