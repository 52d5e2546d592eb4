"""Closing together without `option_simple_close`: `closing_signed` (BOLT 2, "Legacy Closing Negotiation")."""

from __future__ import annotations

from msgspec.structs import replace

from channeld.bolt.messages import ClosingSigned, FeeRange
from channeld.bolt.transactions.closing import (
    ClosingBalances,
    NoClosingTransaction,
    closing_tx_weight,
    has_dust_output,
    legacy_closing_tx,
)
from channeld.bolt.transactions.fees import weight_fee_sat
from channeld.bolt.transactions.funding import funding_sighash
from channeld.bolt.transactions.signing import complete
from channeld.channel.closing_scripts import with_closing_tx
from channeld.channel.effects import Broadcast, Effect, Send
from channeld.channel.env import Env
from channeld.channel.events import ProtocolViolation
from channeld.channel.state import LegacyOffer, NegotiatingLegacy, Transition
from wallet.bitcoin import Tx
from wallet.bitcoin.secp import verify

MAX_FEE_FACTOR = 2
"""What the opener would pay at most, as a multiple of what it proposes."""


def begin(state: NegotiatingLegacy, env: Env) -> tuple[NegotiatingLegacy, list[Effect]]:
    """BOLT 2, "The funding node: after `shutdown` has been received, AND no HTLCs remain in either commitment
    transaction: SHOULD send a `closing_signed` message." """
    if not state.params.is_opener:
        return state, []
    offer = _opener_offer(state, env)
    return _send(state, offer, _our_tx(state, offer.fee_sat), env)


def on_closing_signed(state: NegotiatingLegacy, message: ClosingSigned, env: Env) -> Transition:
    """The peer proposes a fee, or agrees to ours."""
    fee_sat = message.fee_satoshis
    tx = _signed_tx(state, message)
    if has_dust_output(tx):
        # BOLT 2, "if one of the outputs in the closing transaction is below the dust limit for its `scriptpubkey`: MUST
        # fail the channel"
        raise ProtocolViolation("closing_signed: an output is dust")
    sent = state.sent
    state = replace(state, received_fee_sat=fee_sat)
    if sent is not None and fee_sat == sent.fee_sat:
        # BOLT 2, "if `fee_satoshis` is equal to its previously sent `fee_satoshis`: SHOULD sign and broadcast"
        return _agreed(state, message, tx, env, reply=False)
    if sent is not None and sent.min_fee_sat <= fee_sat <= sent.max_fee_sat:
        # BOLT 2, "if `fee_satoshis` matches its previously sent `fee_range`: SHOULD use `fee_satoshis` ..., SHOULD
        # reply with a `closing_signed` with the same `fee_satoshis` value"
        return _agreed(state, message, tx, env, reply=True)
    if message.fee_range is not None:
        return _within_ranges(state, message, message.fee_range, tx, env)
    return _step_by_step(state, message, tx, env)


def _within_ranges(state: NegotiatingLegacy, message: ClosingSigned, range: FeeRange, tx: Tx, env: Env) -> Transition:
    fee_sat, sent = message.fee_satoshis, state.sent
    if state.params.is_opener:
        ours = sent or _opener_offer(state, env)
    else:
        ours = sent or _fundee_offer(state, range.max_fee_satoshis, env)
    least_sat = max(ours.min_fee_sat, range.min_fee_satoshis)
    # What the fundee accepts is as much as the opener says, which may be more than it has.
    most_sat = min(ours.max_fee_sat, range.max_fee_satoshis, _affordable_sat(state))
    if least_sat > most_sat:
        # BOLT 2, "if there is no overlap between that and its own `fee_range`: SHOULD send a warning"
        raise ProtocolViolation(
            f"closing_signed: we accept {ours.min_fee_sat} to {ours.max_fee_sat} sat of fee", "warning"
        )
    if state.params.is_opener:
        if not least_sat <= fee_sat <= most_sat:
            # BOLT 2, "if `fee_satoshis` is not in the overlap between the sent and received `fee_range`: MUST fail the
            # channel"
            raise ProtocolViolation(f"closing_signed: {fee_sat} sat is outside the fee ranges of both sides")
        return _agreed(state, message, tx, env, reply=True)
    if sent is not None:
        # BOLT 2, "if it has already sent a `closing_signed`: if `fee_satoshis` is not the same as the value it sent:
        # MUST fail the channel"
        raise ProtocolViolation(f"closing_signed: {fee_sat} sat, but we agreed to {sent.fee_sat} sat")
    # BOLT 2, "otherwise: MUST propose a `fee_satoshis` in the overlap between received and (about-to-be) sent
    # `fee_range`."
    if least_sat <= fee_sat <= most_sat:
        return _agreed(state, message, tx, env, reply=True)  # the opener pays: its choice is as good as ours
    proposed_sat = min(max(ours.fee_sat, least_sat), most_sat)
    offer = replace(ours, fee_sat=proposed_sat)
    state, effects = _send(state, offer, _our_tx(state, proposed_sat), env)
    return Transition(state, tuple(effects))


def _step_by_step(state: NegotiatingLegacy, message: ClosingSigned, tx: Tx, env: Env) -> Transition:
    """A peer that knows no `fee_range`: the fees approach each other."""
    fee_sat, sent = message.fee_satoshis, state.sent
    ours = sent or (_opener_offer(state, env) if state.params.is_opener else _fundee_offer(state, fee_sat, env))
    if ours.min_fee_sat <= fee_sat <= ours.max_fee_sat:
        return _agreed(state, message, tx, env, reply=True)
    between_sat = min(max((fee_sat + ours.fee_sat) // 2, ours.min_fee_sat), ours.max_fee_sat)
    if not min(fee_sat, ours.fee_sat) < between_sat < max(fee_sat, ours.fee_sat):
        # BOLT 2, "if `fee_satoshis` is not strictly between its last-sent `fee_satoshis` and its previously-received"
        ranges = f"{ours.min_fee_sat} to {ours.max_fee_sat}"
        raise ProtocolViolation(f"closing_signed: {fee_sat} sat is beyond our {ranges} sat", "warning")
    # BOLT 2, "otherwise: MUST propose a value "strictly between" the received `fee_satoshis` and its previously-sent"
    state, effects = _send(state, replace(ours, fee_sat=between_sat), _our_tx(state, between_sat), env)
    return Transition(state, tuple(effects))


# --- offers -------------------------------------------------------------------------------------------------------


def _fee_sat(state: NegotiatingLegacy, feerate_per_kw: int) -> int:
    return weight_fee_sat(closing_tx_weight(state.local_script, state.remote_script), feerate_per_kw)


def _affordable_sat(state: NegotiatingLegacy) -> int:
    """The highest fee that the opener can pay, with at least one output left."""
    balances = _balances(state)
    opener_sat, fundee_sat = balances.local_sat, balances.remote_sat
    if not state.params.is_opener:
        opener_sat, fundee_sat = fundee_sat, opener_sat
    dust_limit_sat = state.params.local.dust_limit_sat
    return opener_sat if fundee_sat >= dust_limit_sat else opener_sat - dust_limit_sat


def _opener_offer(state: NegotiatingLegacy, env: Env) -> LegacyOffer:
    """BOLT 2, "SHOULD set the initial `fee_satoshis` according to its estimate of cost of inclusion in a block." """
    affordable_sat = _affordable_sat(state)
    fee_sat = min(_fee_sat(state, state.closing_feerate_per_kw), affordable_sat)
    least_sat = min(_fee_sat(state, env.policy.min_feerate_per_kw), fee_sat)
    return LegacyOffer(fee_sat, least_sat, min(fee_sat * MAX_FEE_FACTOR, affordable_sat))


def _fundee_offer(state: NegotiatingLegacy, received_max_sat: int, env: Env) -> LegacyOffer:
    """BOLT 2, "if it is not the funder: SHOULD set `max_fee_satoshis` to at least the `max_fee_satoshis` received,
    SHOULD set `min_fee_satoshis` to a fairly low value". It pays nothing: anything that gets relayed is fine."""
    affordable_sat = _affordable_sat(state)
    fee_sat = min(_fee_sat(state, state.closing_feerate_per_kw), affordable_sat)
    least_sat = min(_fee_sat(state, env.policy.min_feerate_per_kw), fee_sat)
    return LegacyOffer(fee_sat, least_sat, max(received_max_sat, affordable_sat))


# --- transactions -------------------------------------------------------------------------------------------------


def _balances(state: NegotiatingLegacy) -> ClosingBalances:
    spec = state.commitments.local.spec
    return ClosingBalances.from_msat(spec.to_local_msat, state.local_script, spec.to_remote_msat, state.remote_script)


def _our_tx(state: NegotiatingLegacy, fee_sat: int) -> Tx:
    params = state.params
    return legacy_closing_tx(
        params.funding_outpoint,
        _balances(state),
        local_is_opener=params.is_opener,
        fee_sat=fee_sat,
        dust_limit_sat=params.local.dust_limit_sat,
    )


def _signed_tx(state: NegotiatingLegacy, message: ClosingSigned) -> Tx:
    """The variant of the transaction that the peer signed: it drops what is below its dust limit, and perhaps its own
    output. Raises ProtocolViolation."""
    params = state.params
    commitment = params.commitment
    variants: list[Tx] = []
    for dust_limit_sat in (params.remote.dust_limit_sat, params.local.dust_limit_sat):
        for omit_remote in (False, True):
            try:
                tx = legacy_closing_tx(
                    params.funding_outpoint,
                    _balances(state),
                    local_is_opener=params.is_opener,
                    fee_sat=message.fee_satoshis,
                    dust_limit_sat=dust_limit_sat,
                    omit_remote=omit_remote,
                )
            except NoClosingTransaction:
                continue
            if tx not in variants:
                variants.append(tx)
    for tx in variants:
        digest = funding_sighash(tx, 0, commitment.funding_script(), commitment.funding_sat)
        if verify(commitment.remote.funding_pubkey, digest, message.signature):
            return tx
    # BOLT 2, "if the `signature` is not valid for either variant of closing transaction ... OR non-compliant with
    # LOW-S-standard rule: MUST send a `warning` and close the connection, or send an `error` and fail the channel."
    raw = variants[0].serialize() if variants else b""
    raise ProtocolViolation("closing_signed: the signature is not valid", "warning", raw)


def _send(state: NegotiatingLegacy, offer: LegacyOffer, tx: Tx, env: Env) -> tuple[NegotiatingLegacy, list[Effect]]:
    params = state.params
    message = ClosingSigned(
        params.channel_id,
        offer.fee_sat,
        env.signer.sign_funding_input(params.commitment, tx),
        FeeRange(offer.min_fee_sat, offer.max_fee_sat),
    )
    return replace(state, sent=offer), [Send(message)]


def _agreed(state: NegotiatingLegacy, message: ClosingSigned, tx: Tx, env: Env, *, reply: bool) -> Transition:
    """Both accept the fee: the transaction is published."""
    params, fee_sat = state.params, message.fee_satoshis
    effects: list[Effect] = []
    if reply:
        sent = state.sent or _fundee_offer(state, fee_sat, env)
        offer = LegacyOffer(fee_sat, min(sent.min_fee_sat, fee_sat), max(sent.max_fee_sat, fee_sat))
        state, effects = _send(state, offer, tx, env)
    signature = env.signer.sign_funding_input(params.commitment, tx)
    signed = complete(params.commitment, tx, signature, message.signature)
    effects.append(Broadcast(signed, "mutual close"))
    return Transition(with_closing_tx(state, signed), tuple(effects))
