"""Normal operation: adding and removing HTLCs, fees, signatures and revocations (BOLT 2, "Normal Operation").

The rules are here; the bookkeeping is in `commitments`. All functions are pure: (state, input, env) -> Transition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

from msgspec.structs import replace

from channeld.bolt.messages import (
    AttributionData,
    CommitmentSigned,
    Message,
    RevokeAndAck,
    UpdateAddHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFulfillHtlc,
    encode,
)
from channeld.bolt.messages import UpdateFee as UpdateFeeMessage
from channeld.bolt.shachain import InconsistentSecret
from channeld.bolt.transactions.commitment import build_commitment, prepare_commitment
from channeld.bolt.transactions.signing import InvalidSignature, verify_commitment
from channeld.bolt.transactions.spec import Htlc
from channeld.channel import commitments as cm
from channeld.channel import limits
from channeld.channel.commitments import (
    AwaitingRevocation,
    Commitments,
    FeeUpdate,
    HtlcAdd,
    HtlcFail,
    HtlcFailMalformed,
    HtlcFulfill,
    LocalCommit,
    ReadyToSign,
    RemoteCommit,
    Removal,
    Update,
    htlc_key,
)
from channeld.channel.effects import Effect, HtlcFailed, HtlcLockedIn, HtlcRemoved, HtlcSettled, Send
from channeld.channel.env import Env
from channeld.channel.events import (
    AddHtlc,
    CommandRejected,
    FailHtlc,
    FailMalformedHtlc,
    FulfillHtlc,
    ProtocolViolation,
    UpdateFee,
)
from channeld.channel.state import (
    AnyFunded,
    ChannelParams,
    Funded,
    Live,
    Normal,
    OperatingState,
    ShuttingDown,
    Transition,
)
from channeld.channel.writes import ForgetAdd, SaveAdd, SaveRevocable, Write
from wallet.bitcoin.secp import is_valid_pubkey, is_valid_secret, pubkey_of

BADONION = 0x8000
MAX_ADD_BYTES = 2048
"""An `update_add_htlc` has 1,487; one with more in it is stored without what we do not know."""
MAX_REASON_BYTES = 4096
"""Of what a peer says of a failed HTLC: it is in the state until the HTLC is gone, and written with each commit. Nodes
send 292 bytes, some more with a `channel_update` in it; a longer one cannot be read by whom it is for."""

# --- commands -----------------------------------------------------------------------------------------------------


def add_htlc(state: Normal, event: AddHtlc, env: Env) -> Transition:
    """Offers an HTLC. Raises CommandRejected."""
    c, params = state.commitments, state.params
    if not isinstance(state.link, Live):
        raise CommandRejected("not_ready", "the peer is not connected")
    if not state.is_deep:
        raise CommandRejected("not_ready", "the funding transaction is not deep enough in the chain any more")
    htlc = Htlc(c.local_next_htlc_id, event.amount_msat, event.payment_hash, event.cltv_expiry, True)
    limits.check_expiry(htlc, env.block_height)
    limits.check_mined_in_time(c, params, env)
    after = limits.check_offer(c, params, htlc, env.policy)
    message = UpdateAddHtlc(
        params.channel_id,
        htlc.id,
        htlc.amount_msat,
        htlc.payment_hash,
        htlc.cltv_expiry,
        event.onion_routing_packet,
        **event.tlvs,
    )
    c = cm.propose(c, params.commitment, HtlcAdd(htlc), after)
    c = replace(c, local_next_htlc_id=htlc.id + 1, origins={**c.origins, htlc.id: event.origin})
    return Transition(replace(state, commitments=c), (Send(message),), (SaveAdd(True, htlc.id, encode(message)),))


def answer_htlc(state: AnyFunded, event: FulfillHtlc | FailHtlc | FailMalformedHtlc, env: Env) -> Transition:
    """Fulfils or fails a received HTLC, now or as soon as it can be said. Raises CommandRejected for one that we do not
    have, or whose hash the preimage does not match. The first answer stands; another one changes nothing."""
    c = state.commitments
    key = htlc_key(event.id, False)
    htlc = c.remote.spec.htlcs.get(key)
    if htlc is None:
        if event.id >= c.remote_next_htlc_id or key in cm.next_local(c).spec.htlcs:
            raise CommandRejected("unknown_htlc", f"the peer has not committed to an HTLC number {event.id}")
        return Transition(state)  # gone for good already
    if key not in cm.next_remote(c).spec.htlcs or any(removal.id == event.id for removal in c.pending):
        return Transition(state)
    removal = _removal(event)
    if isinstance(removal, HtlcFulfill) and sha256(removal.payment_preimage).digest() != htlc.payment_hash:
        raise CommandRejected("invalid", f"this is not the preimage of HTLC {event.id}")
    if isinstance(state.link, Live) and isinstance(state, Normal | ShuttingDown):
        return _propose(state, removal)
    return Transition(replace(state, commitments=replace(c, pending=(*c.pending, removal))))


def propose_pending(c: Commitments, params: ChannelParams) -> tuple[Commitments, list[Effect]]:
    """Says all answers that are pending, after a reconnection."""
    effects: list[Effect] = []
    for removal in c.pending:
        if htlc_key(removal.id, False) in cm.next_remote(c).spec.htlcs:
            c = cm.propose(c, params.commitment, removal)
            effects.append(Send(update_message(params, removal)))
    return replace(c, pending=()), effects


def update_fee(state: Normal | ShuttingDown, event: UpdateFee, env: Env) -> Transition:
    """Proposes another fee rate. Raises CommandRejected."""
    c, params = state.commitments, state.params
    if not params.is_opener:
        # BOLT 2, "The node _not responsible_ for paying the Bitcoin fee: MUST NOT send `update_fee`."
        raise CommandRejected("not_opener", "only the side that opened the channel sets its fee rate")
    if not isinstance(state.link, Live):
        raise CommandRejected("not_ready", "the peer is not connected")
    if isinstance(state, ShuttingDown) and not c.has_htlcs:
        # BOLT 2, "if no HTLCs remain in either commitment transaction ... MUST NOT send any `update` message"
        raise CommandRejected("shutting_down", "the channel is about to be closed")
    if event.feerate_per_kw == cm.next_remote(c).spec.feerate_per_kw:
        return Transition(state)
    limits.check_own_fee(c, params, event.feerate_per_kw, env)
    return _propose(state, FeeUpdate(event.feerate_per_kw))


def _propose(state: Normal | ShuttingDown, update: Update) -> Transition:
    params = state.params
    c = cm.propose(state.commitments, params.commitment, update)
    return Transition(replace(state, commitments=c), (Send(update_message(params, update)),))


def _removal(event: FulfillHtlc | FailHtlc | FailMalformedHtlc) -> Removal:
    match event:
        case FulfillHtlc(id=id, payment_preimage=preimage):
            return HtlcFulfill(id, preimage, _attribution_bytes(event.tlvs))
        case FailHtlc(id=id, reason=reason):
            return HtlcFail(id, reason, _attribution_bytes(event.tlvs))
        case FailMalformedHtlc(id=id, sha256_of_onion=digest, failure_code=code):
            if not code & BADONION:
                raise CommandRejected("invalid", f"failure code {code:#x} has no BADONION bit")
            return HtlcFailMalformed(id, digest, code)


def _attribution_bytes(tlvs: dict[str, Any]) -> bytes:
    data = tlvs.get("attribution_data")
    return data.to_bytes() if isinstance(data, AttributionData) else data or b""


def update_message(params: ChannelParams, update: Update) -> Message:
    """The message that says `update`; not for adds, whose onion is not in the state."""
    channel_id = params.channel_id
    match update:
        case HtlcFulfill(id=id, payment_preimage=preimage, attribution_data=data):
            return UpdateFulfillHtlc(channel_id, id, preimage, _attribution_record(data))
        case HtlcFail(id=id, reason=reason, attribution_data=data):
            return UpdateFailHtlc(channel_id, id, reason, _attribution_record(data))
        case HtlcFailMalformed(id=id, sha256_of_onion=digest, failure_code=code):
            return UpdateFailMalformedHtlc(channel_id, id, digest, code)
        case FeeUpdate(feerate_per_kw=feerate_per_kw):
            return UpdateFeeMessage(channel_id, feerate_per_kw)
        case HtlcAdd():
            raise AssertionError("an add is sent again from what SaveAdd kept")


def _attribution_record(data: bytes) -> AttributionData | None:
    return AttributionData.from_bytes(data) if data else None


# --- the peer's updates -------------------------------------------------------------------------------------------


def on_update_add_htlc(state: Normal | ShuttingDown, message: UpdateAddHtlc, raw: bytes, env: Env) -> Transition:
    """The peer offers an HTLC; its stored wire form is `raw`."""
    if isinstance(state, ShuttingDown) and state.remote_script:
        # BOLT 2, "MUST NOT send an `update_add_htlc` after a `shutdown`."
        raise ProtocolViolation("update_add_htlc after shutdown", "warning")
    c, params = state.commitments, state.params
    if message.id != c.remote_next_htlc_id:
        # BOLT 2, "MUST increase the value of `id` by 1 for each successive offer."
        raise ProtocolViolation(f"update_add_htlc with id {message.id}, {c.remote_next_htlc_id} expected")
    htlc = Htlc(message.id, message.amount_msat, message.payment_hash, message.cltv_expiry, False)
    update = HtlcAdd(htlc)
    after = cm.apply(params.commitment, "local", cm.next_local(c), (update,), False)
    limits.check_received_add(c, params, htlc, after)
    c = replace(cm.receive(c, params.commitment, update, after), remote_next_htlc_id=htlc.id + 1)
    if not raw or len(raw) > MAX_ADD_BYTES:
        raw = encode(dataclasses.replace(message, unknown_tlvs=()))
    return Transition(replace(state, commitments=c), (), (SaveAdd(False, htlc.id, raw),))


def on_update_fulfill_htlc(state: Normal | ShuttingDown, message: UpdateFulfillHtlc, env: Env) -> Transition:
    """The peer gave a preimage: it is acted on at once."""
    c = state.commitments
    htlc = _offered(c, message.id, "update_fulfill_htlc")
    if sha256(message.payment_preimage).digest() != htlc.payment_hash:
        # BOLT 2, "if the `payment_preimage` value in `update_fulfill_htlc` doesn't SHA256 hash to the corresponding
        # HTLC"
        raise ProtocolViolation(f"update_fulfill_htlc: wrong preimage for HTLC {message.id}")
    data = message.attribution_data.to_bytes() if message.attribution_data else b""
    update = HtlcFulfill(message.id, message.payment_preimage, data)
    c = cm.receive(c, state.params.commitment, update)
    effects: list[Effect] = []
    if message.id not in c.learnt:
        is_late = env.block_height >= htlc.cltv_expiry + env.policy.timeout_grace_blocks
        paid_late_msat = c.paid_late_msat + (htlc.amount_msat if is_late else 0)
        c = replace(c, learnt=c.learnt | {message.id}, paid_late_msat=paid_late_msat)
        effects.append(
            HtlcSettled(
                htlc.id,
                c.origins.get(htlc.id, b""),
                htlc.payment_hash,
                htlc.amount_msat,
                message.payment_preimage,
                data or None,
            )
        )
    return Transition(replace(state, commitments=c), tuple(effects))


def on_update_fail_htlc(state: Normal | ShuttingDown, message: UpdateFailHtlc, env: Env) -> Transition:
    """The peer failed an HTLC; it counts once it is committed."""
    _offered(state.commitments, message.id, "update_fail_htlc")
    data = message.attribution_data.to_bytes() if message.attribution_data else b""
    return _receive(state, HtlcFail(message.id, message.reason[:MAX_REASON_BYTES], data))


def on_update_fail_malformed_htlc(
    state: Normal | ShuttingDown, message: UpdateFailMalformedHtlc, env: Env
) -> Transition:
    """The peer could not read our onion."""
    _offered(state.commitments, message.id, "update_fail_malformed_htlc")
    if not message.failure_code & BADONION:
        # BOLT 2, "if the `BADONION` bit in `failure_code` is not set for `update_fail_malformed_htlc`"
        raise ProtocolViolation(f"update_fail_malformed_htlc: failure code {message.failure_code:#x} without BADONION")
    return _receive(state, HtlcFailMalformed(message.id, message.sha256_of_onion, message.failure_code))


def on_update_fee(state: Normal | ShuttingDown, message: UpdateFeeMessage, env: Env) -> Transition:
    """The opener wants another fee rate."""
    c, params = state.commitments, state.params
    update = FeeUpdate(message.feerate_per_kw)
    after = cm.apply(params.commitment, "local", cm.next_local(c), (update,), False)
    limits.check_received_fee(c, params, message.feerate_per_kw, after, env)
    return Transition(replace(state, commitments=cm.receive(c, params.commitment, update, after)))


def _receive(state: Normal | ShuttingDown, update: Update) -> Transition:
    return Transition(replace(state, commitments=cm.receive(state.commitments, state.params.commitment, update)))


def _offered(c: Commitments, id: int, message: str) -> Htlc:
    key = htlc_key(id, True)
    htlc = c.local.spec.htlcs.get(key)
    if htlc is None or key not in cm.next_local(c).spec.htlcs:
        # BOLT 2, "if the `id` does not correspond to an HTLC in its current commitment transaction"
        raise ProtocolViolation(f"{message}: there is no HTLC {id} that could be removed")
    return htlc


# --- signatures and revocations -----------------------------------------------------------------------------------


def can_sign(state: Funded) -> bool:
    """Whether `sign` would send a signature."""
    c = state.commitments
    return (
        isinstance(state, Normal | ShuttingDown)
        and isinstance(state.link, Live)
        and isinstance(c.remote_next, ReadyToSign)
        and c.has_changes_to_sign
    )


def preparations(state: Funded, env: Env) -> list[Callable[[], object]]:
    """To derive the keys of the commitments that come next, whose points are known already, and the point that the next
    `revoke_and_ack` tells. They only fill caches."""
    if not isinstance(state, Normal | ShuttingDown) or not isinstance(state.link, Live):
        return []
    c, params, signer = state.commitments, state.params.commitment, env.signer
    jobs: list[Callable[[], object]] = []
    if isinstance(c.remote_next, ReadyToSign):
        jobs.append(partial(prepare_commitment, params, "remote", c.remote_next.next_point))
    jobs.append(partial(prepare_commitment, params, "local", signer.per_commitment_point(c.local.index + 1)))
    jobs.append(partial(signer.per_commitment_point, c.local.index + 2))
    return jobs


def sign(state: Normal | ShuttingDown, env: Env) -> Transition:
    """Signs all that is under way, if `can_sign`."""
    c, params = state.commitments, state.params
    # BOLT 2, "MUST NOT send a `commitment_signed` message that does not include any updates."
    if not can_sign(state) or not isinstance(c.remote_next, ReadyToSign):
        return Transition(state)
    spec = cm.next_remote(c).spec
    message, commit, save = sign_remote(params, spec, c.latest_remote.index + 1, c.remote_next.next_point, env)
    return Transition(replace(state, commitments=cm.sign(c, commit)), (Send(message),), (save,))


def sign_remote(
    params: ChannelParams, spec: cm.Spec, index: int, point: bytes, env: Env
) -> tuple[CommitmentSigned, RemoteCommit, SaveRevocable]:
    """The peer's commitment `index`, our signatures for it, and what it takes to punish it."""
    built = build_commitment(params.commitment, spec.commitment_spec(), "remote", index, point)
    signature, htlc_signatures = env.signer.sign_commitment(built, env.parallel)
    # BOLT 2, "MUST set `funding_txid` to the funding transaction spent by this commitment transaction."
    message = CommitmentSigned(params.channel_id, signature, tuple(htlc_signatures), params.funding_outpoint.txid)
    save = SaveRevocable(
        index,
        built.txid,
        spec.to_local_msat,
        spec.to_remote_msat,
        spec.feerate_per_kw,
        tuple((h.offered, h.amount_msat, h.payment_hash, h.cltv_expiry) for h in spec.htlcs.values()),
    )
    return message, RemoteCommit(index, spec, built.txid, point), save


def on_commitment_signed(
    state: OperatingState, message: CommitmentSigned, env: Env
) -> tuple[OperatingState, list[Effect], list[Write]]:
    """The peer signed our next commitment: we have it, so the one before is revoked."""
    c, params = state.commitments, state.params
    spec, index = cm.next_local(c).spec, c.local.index + 1
    built = build_commitment(
        params.commitment, spec.commitment_spec(), "local", index, env.signer.per_commitment_point(index)
    )
    try:
        verify_commitment(built, message.signature, message.htlc_signature, env.parallel)
    except InvalidSignature as error:
        if not c.ours.acked and not c.theirs.proposed:
            # BOLT 2, "MUST NOT send a `commitment_signed` message that does not include any updates." Who does all the
            # same (LND is known to) would say it again on each connection, and is answered if it is valid.
            raise ProtocolViolation(f"commitment_signed without any updates: {error}", "warning") from error
        # BOLT 1, "when failure was caused by an invalid signature check: SHOULD include the raw, hex-encoded
        # transaction"
        raise ProtocolViolation(f"commitment_signed: {error}", tx=built.tx.serialize()) from error
    effects: list[Effect] = [Send(revoke_and_ack(params, index, env))]
    writes: list[Write] = []
    for update in c.ours.acked:
        if not isinstance(update, HtlcAdd | FeeUpdate):
            effects.append(HtlcRemoved(update.id, isinstance(update, HtlcFulfill)))
            writes.append(ForgetAdd(False, update.id))
    commit = LocalCommit(index, spec, built.txid, message.signature, message.htlc_signature)
    return replace(state, commitments=cm.receive_signature(c, params.commitment, commit)), effects, writes


def revoke_and_ack(params: ChannelParams, index: int, env: Env) -> RevokeAndAck:
    """What follows our commitment `index`: the secret of the one before, and the point of the next."""
    signer = env.signer
    return RevokeAndAck(
        params.channel_id, signer.per_commitment_secret(index - 1), signer.per_commitment_point(index + 1)
    )


def on_revoke_and_ack(
    state: OperatingState, message: RevokeAndAck, env: Env
) -> tuple[OperatingState, list[Effect], list[Write]]:
    """The peer revoked its previous commitment: its updates in ours are committed for good."""
    c, params = state.commitments, state.params
    if not isinstance(c.remote_next, AwaitingRevocation):
        raise ProtocolViolation("revoke_and_ack without a signature that it could answer")
    secret = message.per_commitment_secret
    # BOLT 2, "if `per_commitment_secret` is not a valid secret key or does not generate the previous
    # `per_commitment_point`"
    if not is_valid_secret(secret) or pubkey_of(secret) != c.remote.point:
        raise ProtocolViolation("revoke_and_ack: the secret is not that of the previous commitment")
    if not is_valid_pubkey(message.next_per_commitment_point):
        raise ProtocolViolation("revoke_and_ack: next_per_commitment_point is not a point")
    try:
        secrets = c.remote_secrets.insert(c.remote.index, secret)
    except InconsistentSecret as error:
        # BOLT 2, "if the `per_commitment_secret` was not generated by the protocol in BOLT #3"
        raise ProtocolViolation(f"revoke_and_ack: {error}") from error
    effects: list[Effect] = []
    writes: list[Write] = [ForgetAdd(True, update.htlc.id) for update in c.ours.signed if isinstance(update, HtlcAdd)]
    removed: set[int] = set()
    for update in c.theirs.signed:
        if isinstance(update, HtlcAdd):
            effects.append(locked_in(state, update.htlc, env))
        elif not isinstance(update, FeeUpdate):
            removed.add(update.id)
            effects.extend(_outcome(c, update))
    after = cm.receive_revocation(c, params.commitment, secrets, message.next_per_commitment_point)
    if removed:
        origins = {id: origin for id, origin in c.origins.items() if id not in removed}
        after = replace(after, origins=origins, learnt=c.learnt - removed)
    return replace(state, commitments=after), effects, writes


def locked_in(state: Funded, htlc: Htlc, env: Env) -> HtlcLockedIn:
    """What the node hears of a received HTLC that is irrevocable."""
    first_late_id = state.first_late_htlc_id if isinstance(state, ShuttingDown) else None
    return HtlcLockedIn(
        htlc,
        limits.exceeds_dust_exposure(state, htlc, env.policy),
        is_unfunded(state),
        first_late_id is not None and htlc.id >= first_late_id,
        limits.is_too_cheap(state.params, state.commitments.local.spec.feerate_per_kw, env),
    )


def is_unfunded(state: Funded) -> bool:
    """Whether the peer could take back what it pays us over this channel: its funding left the chain."""
    return not state.params.is_opener and not state.is_deep


def _outcome(c: Commitments, update: Removal) -> list[Effect]:
    """What to report of an HTLC of ours that is gone: nothing if its preimage was reported."""
    if update.id in c.learnt:
        return []
    htlc = c.remote.spec.htlcs[htlc_key(update.id, True)]
    failed = HtlcFailed(htlc.id, c.origins.get(htlc.id, b""), htlc.payment_hash, htlc.amount_msat)
    match update:
        case HtlcFail(reason=reason, attribution_data=data):
            return [replace(failed, reason=reason, attribution_data=data or None)]
        case HtlcFailMalformed(sha256_of_onion=digest, failure_code=code):
            return [replace(failed, failure_code=code, sha256_of_onion=digest)]
        case HtlcFulfill():
            raise AssertionError("a fulfilled HTLC has its preimage reported when it arrives")


# --- disconnection ------------------------------------------------------------------------------------------------


def drop_uncommitted(c: Commitments, params: ChannelParams) -> tuple[Commitments, list[Effect], list[Write]]:
    """The connection is gone: what was not signed for never happened."""
    writes: list[Write] = [
        ForgetAdd(False, update.htlc.id) for update in c.theirs.proposed if isinstance(update, HtlcAdd)
    ]
    after, dropped = cm.drop_uncommitted(c, params.commitment)
    effects: list[Effect] = [
        HtlcFailed(h.id, c.origins.get(h.id, b""), h.payment_hash, h.amount_msat, never_sent=True) for h in dropped
    ]
    writes.extend(ForgetAdd(True, htlc.id) for htlc in dropped)
    return after, effects, writes
