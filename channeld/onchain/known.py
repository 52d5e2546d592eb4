"""What a channel knows that matters on chain: a view of the channel's state, put together once per change."""

from __future__ import annotations

from msgspec import Struct

from channeld.bolt.shachain import SecretStore
from channeld.bolt.transactions import CommitmentParams, Htlc
from channeld.channel.chain import shutdown_scripts
from channeld.channel.commitments import AwaitingRevocation, HtlcFulfill, LocalCommit, RemoteCommit, Spec, htlc_key
from channeld.channel.state import AnyFunded, Closing
from channeld.channel.writes import SaveRevocable


class Known(Struct, frozen=True):
    """`preimages` are those that we decided to claim received HTLCs with, by the HTLC's id; `offered` are HTLCs of ours
    whose outcome was not reported, by id. `local_tx` is our commitment with its witness if it was published (else
    empty), `revocable` what was kept of the revoked commitment that was seen, if one was. `shutdown_scripts` are where
    a mutual close may pay, ours first."""

    params: CommitmentParams
    local: LocalCommit
    local_point: bytes
    remote: RemoteCommit
    remote_next: RemoteCommit | None
    secrets: SecretStore
    preimages: dict[int, bytes] = {}
    offered: dict[int, Htlc] = {}
    local_tx: bytes = b""
    revocable: SaveRevocable | None = None
    shutdown_scripts: tuple[bytes, ...] = ()
    seen_tx: bytes = b""
    """What was in the chain to close the channel and is not `local_tx`: the peer's as a rule. After a reorganisation it
    may have to be published again, if that is safe."""
    own_point: bytes = b""
    """Our `per_commitment_point` for the commitment in the chain, if that is neither side's latest: it may be ours,
    published before we lost our state."""
    rival_tx: bytes = b""
    """The peer's commitment, if layer 1 keeps that one waiting and therefore refuses ours: it is as good."""

    @property
    def remote_commits(self) -> tuple[RemoteCommit, ...]:
        """The commitments that the peer may broadcast with impunity."""
        return (self.remote,) if self.remote_next is None else (self.remote, self.remote_next)

    def htlcs_at_stake(self, spec: Spec) -> list[Htlc]:
        """Those of a commitment, and our own that are under way elsewhere."""
        offered = {htlc_key(id, True): htlc for id, htlc in self.offered.items()}
        return list({**offered, **spec.htlcs}.values())

    def revoked_htlcs(self) -> list[Htlc]:
        """Those of the revoked commitment that was seen. Their ids were not kept: where one is still under way it gets
        its id back, another a negative one."""
        if self.revocable is None:
            return []
        alive = {(h.amount_msat, h.payment_hash, h.cltv_expiry, h.id) for h in self.offered.values()}
        htlcs: list[Htlc] = []
        for number, (offered, amount_msat, payment_hash, cltv_expiry) in enumerate(self.revocable.htlcs):
            same = (entry for entry in alive if entry[:3] == (amount_msat, payment_hash, cltv_expiry))
            found = min(same, default=None) if offered else None
            if found is not None:
                alive.remove(found)
            id = -1 - number if found is None else found[3]
            htlcs.append(Htlc(id, amount_msat, payment_hash, cltv_expiry, offered))
        return htlcs


def known_of(state: AnyFunded, local_point: bytes, revocable: SaveRevocable | None = None) -> Known:
    """From a channel's state; `local_point` is the `per_commitment_point` of our latest commitment.

    BOLT 5, "if the *remote node* is NOT irrevocably committed to the HTLC: MUST NOT *resolve* the output by spending
    it": the channel takes a `FulfillHtlc` only for an HTLC that is irrevocably committed, so no other preimage is here.
    """
    c = state.commitments
    following = c.remote_next.commit if isinstance(c.remote_next, AwaitingRevocation) else None
    received = {r.id: r.payment_preimage for r in c.removals() if isinstance(r, HtlcFulfill)}
    offered: dict[int, Htlc] = {}
    for spec in (c.remote.spec, c.latest_remote.spec, c.local.spec):
        for htlc in spec.htlcs.values():
            if htlc.offered and htlc.id in c.origins and htlc.id not in c.learnt:
                offered[htlc.id] = htlc
    return Known(
        params=state.params.commitment,
        local=c.local,
        local_point=local_point,
        remote=c.remote,
        remote_next=following,
        secrets=c.remote_secrets,
        preimages=received,
        offered=offered,
        local_tx=state.local_tx if isinstance(state, Closing) else b"",
        seen_tx=state.closing_tx if isinstance(state, Closing) and not state.local_tx else b"",
        revocable=revocable,
        shutdown_scripts=shutdown_scripts(state),
    )
