"""Both sides' commitments and the updates under way between them: pure bookkeeping, no rules and no keys.

An update goes through these lists, once for each commitment that it has to enter:

    ours:    proposed --sign--> signed --their revocation--> acked --their signature--> gone, irrevocably committed
    theirs:  proposed --their signature--> acked --sign--> signed --their revocation--> gone, irrevocably committed

What remote's next commitment contains is remote's latest + theirs.acked + ours.proposed, what local's next contains is
local's latest + ours.acked + theirs.proposed. Both are kept ready as a `Preview`, with the sums that limits are about,
so that nothing is added up twice; `previews` computes them from scratch (after a disconnection or a restart).

Everything is from local's view: `offered` is by us, `to_local_msat` is ours, whoever owns the commitment.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from channeld.bolt.shachain import SecretStore
from channeld.bolt.transactions.fees import funder_cost_sat
from channeld.bolt.transactions.spec import CommitmentParams, CommitmentSpec, Htlc, Side, trim_limit_sat

# --- updates ------------------------------------------------------------------------------------------------------


class HtlcAdd(Struct, frozen=True, array_like=True, tag="add"):
    """`update_add_htlc`; its onion is in a table of its own (`SaveAdd`)."""

    htlc: Htlc


class HtlcFulfill(Struct, frozen=True, array_like=True, tag="fulfill"):
    """`update_fulfill_htlc`. `attribution_data`: 920 bytes, or none."""

    id: int
    payment_preimage: bytes
    attribution_data: bytes = b""


class HtlcFail(Struct, frozen=True, array_like=True, tag="fail"):
    """`update_fail_htlc`. `attribution_data`: 920 bytes, or none."""

    id: int
    reason: bytes
    attribution_data: bytes = b""


class HtlcFailMalformed(Struct, frozen=True, array_like=True, tag="malformed"):
    """`update_fail_malformed_htlc`."""

    id: int
    sha256_of_onion: bytes
    failure_code: int


class FeeUpdate(Struct, frozen=True, array_like=True, tag="fee"):
    """`update_fee`, by the opener only."""

    feerate_per_kw: int


Removal = HtlcFulfill | HtlcFail | HtlcFailMalformed
Update = HtlcAdd | HtlcFulfill | HtlcFail | HtlcFailMalformed | FeeUpdate


class LocalChanges(Struct, frozen=True, array_like=True):
    """Our updates, by how far they have come (see the module)."""

    proposed: tuple[Update, ...] = ()
    signed: tuple[Update, ...] = ()
    acked: tuple[Update, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.proposed or self.signed or self.acked)


class RemoteChanges(Struct, frozen=True, array_like=True):
    """The peer's updates, by how far they have come (see the module)."""

    proposed: tuple[Update, ...] = ()
    acked: tuple[Update, ...] = ()
    signed: tuple[Update, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.proposed or self.acked or self.signed)


# --- commitments --------------------------------------------------------------------------------------------------


def htlc_key(id: int, offered: bool) -> int:
    """One number for an HTLC of either direction."""
    return id << 1 | offered


class Spec(Struct, frozen=True, array_like=True):
    """What a commitment pays, a value: HTLCs by `htlc_key`, balances without them and before fees."""

    feerate_per_kw: int
    to_local_msat: int
    to_remote_msat: int
    htlcs: dict[int, Htlc] = {}

    def commitment_spec(self) -> CommitmentSpec:
        """The same for `build_commitment`."""
        return CommitmentSpec(
            frozenset(self.htlcs.values()), self.feerate_per_kw, self.to_local_msat, self.to_remote_msat
        )


class LocalCommit(Struct, frozen=True, array_like=True):
    """The commitment that we may broadcast, with the peer's signatures (64 bytes each, HTLCs in output order)."""

    index: int
    spec: Spec
    txid: bytes
    remote_sig: bytes
    remote_htlc_sigs: tuple[bytes, ...] = ()


class RemoteCommit(Struct, frozen=True, array_like=True):
    """A commitment that the peer may broadcast; `point` is its `per_commitment_point`."""

    index: int
    spec: Spec
    txid: bytes
    point: bytes


class AwaitingChannelReady(Struct, frozen=True, array_like=True, tag="unready"):
    """The peer has not said `channel_ready`: we do not know the point of its second commitment."""


class ReadyToSign(Struct, frozen=True, array_like=True, tag="ready"):
    """The peer has only one valid commitment; its next one will have `next_point`."""

    next_point: bytes


class AwaitingRevocation(Struct, frozen=True, array_like=True, tag="awaiting"):
    """We signed `commit`, and the peer has not revoked the one before: it may broadcast either.

    `sent_after_local_index` is our commitment's number when we signed: it tells in which order the signature and our
    own last revocation went out.
    """

    commit: RemoteCommit
    sent_after_local_index: int


RemoteNext = AwaitingChannelReady | ReadyToSign | AwaitingRevocation


class Preview(Struct, frozen=True):
    """A commitment as it will be when it is signed next, with its sums. Derived; never stored.

    `untrimmed` counts HTLCs that get an output, `dust_msat` is in those that do not; the limits say from what amount on
    an HTLC that we offered or received gets one.
    """

    spec: Spec
    offered_limit_msat: int
    received_limit_msat: int
    offered_count: int = 0
    offered_msat: int = 0
    received_count: int = 0
    received_msat: int = 0
    untrimmed: int = 0
    dust_msat: int = 0

    def cost_msat(self, anchors: bool, extra_htlcs: int = 0, feerate_factor: int = 1) -> int:
        """What the opener pays for this commitment (fee and anchors), with more HTLCs or a higher fee rate if asked."""
        feerate_per_kw = self.spec.feerate_per_kw * feerate_factor
        return funder_cost_sat(feerate_per_kw, self.untrimmed + extra_htlcs, anchors) * 1000


class Commitments(Struct, frozen=True, kw_only=True):
    """Everything that moves in a channel. The constants are in `ChannelParams`."""

    local: LocalCommit
    remote: RemoteCommit
    remote_next: RemoteNext
    ours: LocalChanges = LocalChanges()
    theirs: RemoteChanges = RemoteChanges()
    local_next_htlc_id: int = 0
    remote_next_htlc_id: int = 0
    remote_secrets: SecretStore = SecretStore()
    origins: dict[int, bytes] = {}
    """What `AddHtlc` said of each HTLC that we offer, by id, until its outcome is known."""
    learnt: frozenset[int] = frozenset()
    """Ids of HTLCs that we offered and whose preimage was reported: whatever the peer says next, they are settled."""
    paid_late_msat: int = 0
    """In HTLCs of ours that the peer fulfilled after their deadline, as they were not worth a close (`economics`)."""
    pending: tuple[Removal, ...] = ()
    """How received HTLCs are to be answered, decided while it could not be said. Never lost."""
    next_local: Preview | None = None
    next_remote: Preview | None = None

    @property
    def latest_remote(self) -> RemoteCommit:
        """The newest commitment that we signed for the peer."""
        following = self.remote_next
        return following.commit if isinstance(following, AwaitingRevocation) else self.remote

    @property
    def has_changes_to_sign(self) -> bool:
        """Whether the peer's next commitment would differ from its latest."""
        return bool(self.ours.proposed or self.theirs.acked)

    @property
    def is_settled(self) -> bool:
        """Nothing is under way: both commitments say the same, and no revocation is owed."""
        return not (self.ours or self.theirs or isinstance(self.remote_next, AwaitingRevocation))

    @property
    def has_htlcs(self) -> bool:
        """Whether any commitment that may be broadcast, or any update under way, has an HTLC."""
        if self.local.spec.htlcs or self.remote.spec.htlcs or self.latest_remote.spec.htlcs:
            return True
        updates = (*self.ours.proposed, *self.ours.signed, *self.ours.acked, *self.theirs.proposed, *self.theirs.acked)
        return any(isinstance(update, HtlcAdd) for update in updates)

    def removals(self) -> Iterable[Removal]:
        """Our answers to received HTLCs that are not yet gone from both commitments for good."""
        for update in (*self.ours.acked, *self.ours.signed, *self.ours.proposed, *self.pending):
            if isinstance(update, HtlcFulfill | HtlcFail | HtlcFailMalformed):
                yield update


def preview(params: CommitmentParams, side: Side, spec: Spec) -> Preview:
    """The sums of a commitment of `side`, added up from scratch."""
    offered_limit_msat, received_limit_msat = _limits_msat(params, side, spec.feerate_per_kw)
    empty = Preview(spec, offered_limit_msat, received_limit_msat)
    count = {True: 0, False: 0}
    total_msat = {True: 0, False: 0}
    untrimmed = dust_msat = 0
    for htlc in spec.htlcs.values():
        count[htlc.offered] += 1
        total_msat[htlc.offered] += htlc.amount_msat
        if htlc.amount_msat >= (offered_limit_msat if htlc.offered else received_limit_msat):
            untrimmed += 1
        else:
            dust_msat += htlc.amount_msat
    return replace(
        empty,
        offered_count=count[True],
        offered_msat=total_msat[True],
        received_count=count[False],
        received_msat=total_msat[False],
        untrimmed=untrimmed,
        dust_msat=dust_msat,
    )


def _limits_msat(params: CommitmentParams, side: Side, feerate_per_kw: int) -> tuple[int, int]:
    """(from what amount on an offered, a received HTLC has an output in the commitment of `side`)."""
    owner_is_local = side == "local"
    by_owner = trim_limit_sat(params, feerate_per_kw, side, True) * 1000
    by_other = trim_limit_sat(params, feerate_per_kw, side, False) * 1000
    return (by_owner, by_other) if owner_is_local else (by_other, by_owner)


def apply(params: CommitmentParams, side: Side, before: Preview, updates: Iterable[Update], by_local: bool) -> Preview:
    """The commitment of `side` with more updates, all of one side's. Raises KeyError for an HTLC that is not in it."""
    spec = before.spec
    feerate_per_kw, local_msat, remote_msat = spec.feerate_per_kw, spec.to_local_msat, spec.to_remote_msat
    htlcs = dict(spec.htlcs)
    offered_count, offered_msat = before.offered_count, before.offered_msat
    received_count, received_msat = before.received_count, before.received_msat
    untrimmed, dust_msat = before.untrimmed, before.dust_msat
    for update in updates:
        kind = type(update)
        if kind is FeeUpdate:
            feerate_per_kw = update.feerate_per_kw  # type: ignore[union-attr]
            continue
        if kind is HtlcAdd:
            htlc: Htlc = update.htlc  # type: ignore[union-attr]
            htlcs[htlc.id << 1 | by_local] = htlc
            sign, amount_msat, to_local = 1, htlc.amount_msat, by_local
        else:
            # A side removes what the other offered: fulfilled, the amount becomes its own; failed, it goes back.
            htlc = htlcs.pop(update.id << 1 | (not by_local))  # type: ignore[union-attr]
            sign, amount_msat = -1, htlc.amount_msat
            to_local = by_local if kind is HtlcFulfill else not by_local
        change_msat = sign * amount_msat
        if to_local:
            local_msat -= change_msat
        else:
            remote_msat -= change_msat
        if htlc.offered:
            offered_count += sign
            offered_msat += change_msat
            limit_msat = before.offered_limit_msat
        else:
            received_count += sign
            received_msat += change_msat
            limit_msat = before.received_limit_msat
        if amount_msat >= limit_msat:
            untrimmed += sign
        else:
            dust_msat += change_msat
    after = Spec(feerate_per_kw, local_msat, remote_msat, htlcs)
    if feerate_per_kw != spec.feerate_per_kw:
        return preview(params, side, after)
    return Preview(
        after,
        before.offered_limit_msat,
        before.received_limit_msat,
        offered_count,
        offered_msat,
        received_count,
        received_msat,
        untrimmed,
        dust_msat,
    )


def with_previews(c: Commitments, params: CommitmentParams) -> Commitments:
    """Both previews from scratch."""
    remote = preview(params, "remote", c.latest_remote.spec)
    remote = apply(params, "remote", remote, c.theirs.acked, False)
    local = preview(params, "local", c.local.spec)
    local = apply(params, "local", local, c.ours.acked, True)
    return replace(
        c,
        next_remote=apply(params, "remote", remote, c.ours.proposed, True),
        next_local=apply(params, "local", local, c.theirs.proposed, False),
    )


def next_remote(c: Commitments) -> Preview:
    """What we would sign now."""
    assert c.next_remote is not None, "previews are made when a state is made or decoded"
    return c.next_remote


def next_local(c: Commitments) -> Preview:
    """What the peer would sign now."""
    assert c.next_local is not None, "previews are made when a state is made or decoded"
    return c.next_local


# --- steps --------------------------------------------------------------------------------------------------------


def propose(c: Commitments, params: CommitmentParams, update: Update, after: Preview | None = None) -> Commitments:
    """We sent `update`; `after` is remote's next commitment with it, if it is known already."""
    if after is None:
        after = apply(params, "remote", next_remote(c), (update,), True)
    ours = c.ours
    return replace(c, ours=LocalChanges((*ours.proposed, update), ours.signed, ours.acked), next_remote=after)


def receive(c: Commitments, params: CommitmentParams, update: Update, after: Preview | None = None) -> Commitments:
    """The peer sent `update`; `after` is local's next commitment with it, if it is known already."""
    if after is None:
        after = apply(params, "local", next_local(c), (update,), False)
    theirs = c.theirs
    proposed = _without_fees(theirs.proposed) if isinstance(update, FeeUpdate) else theirs.proposed
    return replace(c, theirs=RemoteChanges((*proposed, update), theirs.acked, theirs.signed), next_local=after)


def _without_fees(updates: tuple[Update, ...]) -> tuple[Update, ...]:
    """Before a newer `update_fee`: only the last one counts, and a peer may send as many as it likes."""
    return tuple(update for update in updates if not isinstance(update, FeeUpdate))


def sign(c: Commitments, commit: RemoteCommit) -> Commitments:
    """We signed `commit`, which is the preview of remote's next commitment."""
    ours, theirs = c.ours, c.theirs
    assert isinstance(c.remote_next, ReadyToSign)
    assert not ours.signed
    assert not theirs.signed
    return replace(
        c,
        remote_next=AwaitingRevocation(commit, c.local.index),
        ours=LocalChanges((), ours.proposed, ours.acked),
        theirs=RemoteChanges(theirs.proposed, (), theirs.acked),
    )


def receive_signature(c: Commitments, params: CommitmentParams, commit: LocalCommit) -> Commitments:
    """The peer signed `commit`, which is the preview of our next commitment: ours.acked is committed for good."""
    ours, theirs = c.ours, c.theirs
    preview_of_remote = next_remote(c)
    if theirs.proposed:
        preview_of_remote = apply(params, "remote", preview_of_remote, theirs.proposed, False)
    acked = theirs.acked
    if acked and any(isinstance(update, FeeUpdate) for update in theirs.proposed):
        acked = _without_fees(acked)
    return replace(
        c,
        local=commit,
        ours=LocalChanges(ours.proposed, ours.signed, ()),
        theirs=RemoteChanges((), (*acked, *theirs.proposed), theirs.signed),
        next_remote=preview_of_remote,
    )


def receive_revocation(
    c: Commitments, params: CommitmentParams, secrets: SecretStore, next_point: bytes
) -> Commitments:
    """The peer revoked its previous commitment: theirs.signed is committed for good."""
    ours, theirs = c.ours, c.theirs
    assert isinstance(c.remote_next, AwaitingRevocation)
    preview_of_local = next_local(c)
    if ours.signed:
        preview_of_local = apply(params, "local", preview_of_local, ours.signed, True)
    return replace(
        c,
        remote=c.remote_next.commit,
        remote_next=ReadyToSign(next_point),
        remote_secrets=secrets,
        ours=LocalChanges(ours.proposed, (), (*ours.acked, *ours.signed)),
        theirs=RemoteChanges(theirs.proposed, theirs.acked, ()),
        next_local=preview_of_local,
    )


def drop_uncommitted(c: Commitments, params: CommitmentParams) -> tuple[Commitments, tuple[Htlc, ...]]:
    """The connection is gone, and with it what was not signed for. Returns also our adds that go with it.

    BOLT 2, "Message Retransmission": "MUST reverse any uncommitted updates sent by the other side". Our own answers to
    received HTLCs stay decided: they wait in `pending` to be said again.
    """
    dropped = tuple(update.htlc for update in c.ours.proposed if isinstance(update, HtlcAdd))
    answers = tuple(update for update in c.ours.proposed if not isinstance(update, HtlcAdd | FeeUpdate))
    received = sum(isinstance(update, HtlcAdd) for update in c.theirs.proposed)
    gone = {htlc.id for htlc in dropped}
    c = replace(
        c,
        ours=LocalChanges((), c.ours.signed, c.ours.acked),
        theirs=RemoteChanges((), c.theirs.acked, c.theirs.signed),
        local_next_htlc_id=c.local_next_htlc_id - len(dropped),
        remote_next_htlc_id=c.remote_next_htlc_id - received,
        origins={id: origin for id, origin in c.origins.items() if id not in gone} if gone else c.origins,
        pending=(*answers, *c.pending),
    )
    return with_previews(c, params), dropped


def unanswered(c: Commitments) -> list[Htlc]:
    """Received HTLCs that are locked in, and neither fulfilled nor failed by us, in order.

    What is in `remote` is locked in: we only sign for it after we revoked every commitment of ours without it, and
    `remote` is what the peer has revoked everything before.
    """
    answered = {removal.id for removal in c.removals()}
    return sorted(htlc for htlc in c.remote.spec.htlcs.values() if not htlc.offered and htlc.id not in answered)
