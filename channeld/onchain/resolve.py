"""From the chain's facts to the outputs of a close: one function per kind of commitment (BOLT 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from channeld.bolt.keys import CommitmentKeys, derive_commitment_keys, per_commitment_point
from channeld.bolt.transactions import Htlc, HtlcOutput, build_commitment, sweep
from channeld.bolt.transactions.onchain import (
    CommitmentOutputs,
    FoundOutput,
    HtlcMatch,
    identify_outputs,
    preimage_in_witness,
    to_remote_script_pubkey,
)
from channeld.bolt.transactions.scripts import to_local_script
from channeld.bolt.transactions.sweep import ANYONE_CAN_SPEND_ANCHOR_BLOCKS
from channeld.channel.commitments import RemoteCommit
from channeld.onchain.classify import classify
from channeld.onchain.facts import Fact, SpentBy, spenders
from channeld.onchain.known import Known
from channeld.onchain.outputs import Claim, Close, HtlcTx, NeedsPreimage, Ours, Output, Sweep, Theirs
from channeld.onchain.taker import htlc_spent_by_owner, taker_of_htlc
from wallet.bitcoin import OutPoint, sha256
from wallet.bitcoin.script import p2wsh

Spent = dict[OutPoint, SpentBy]


def resolve(known: Known, facts: Sequence[Fact]) -> Close | None:
    """What ended the channel and what became of its outputs so far; None while the funding output is unspent."""
    spent = spenders(facts)
    ending = spent.get(known.params.funding_outpoint)
    if ending is None:
        return None
    kind, number = classify(known, ending.tx)
    preimages: dict[bytes, bytes] = {}
    match kind:
        case "mutual":
            outputs = [_closing_output(known, ending, vout) for vout in range(len(ending.tx.outputs))]
        case "local":
            outputs = _local(known, ending, spent, preimages)
        case "remote_current":
            outputs = _remote(known, known.remote, ending, spent, preimages)
        case "remote_next":
            assert known.remote_next is not None
            outputs = _remote(known, known.remote_next, ending, spent, preimages)
        case "revoked":
            assert number is not None
            outputs = _revoked(known, number, ending, spent, preimages)
        case "unknown":
            outputs = _unknown(known, ending, spent, preimages)
    return Close(kind, ending.height, ending.txid, number, tuple(outputs), preimages)


def _closing_output(known: Known, ending: SpentBy, vout: int) -> Output:
    """BOLT 5, "Mutual Close Handling": "a node need not do anything else"."""
    txout = ending.tx.outputs[vout]
    if txout.script_pubkey in known.shutdown_scripts[:1]:
        claim: Claim = Ours("it was agreed on, and pays where we asked for it")
    else:
        claim = Theirs("it was agreed on, and pays where the peer asked for it")
    owner = "local" if isinstance(claim, Ours) else "remote"
    return Output(
        kind="closing",
        owner=owner,  # type: ignore[arg-type]
        amount_sat=txout.value_sat,
        claim=claim,
        outpoint=OutPoint(ending.txid, vout),
    )


# --- what all commitments have in common --------------------------------------------------------------------------


def _taken(output: Output, spent: Spent) -> Output:
    """With who spent it, where only its owner's key can have; nobody in particular took an anchor without a key."""
    by = None if output.outpoint is None else spent.get(output.outpoint)
    if by is None:
        return output
    anyone = output.is_anchor and by.witness[:1] == (b"",)
    return replace(output, spent=by, taker=None if anyone else output.owner)


def _anchors(
    known: Known, found: CommitmentOutputs, ending: SpentBy, spent: Spent, owner_is_local: bool
) -> list[Output]:
    """Both anchors. Whoever did not need its own leaves it to anyone after 16 blocks (BOLT 3)."""
    outputs: list[Output] = []
    own, other = found.to_local_anchor, found.to_remote_anchor
    ours, theirs = (own, other) if owner_is_local else (other, own)
    if ours is not None:
        spend = sweep.anchor_output(known.params, *ours)
        anchor = Output(
            kind="anchor",
            owner="local",
            amount_sat=ours.output.value_sat,
            claim=Sweep(spend),
            outpoint=ours.outpoint,
            mature_height=ending.height + 1,
            deadline_height=ending.height + ANYONE_CAN_SPEND_ANCHOR_BLOCKS,
        )
        outputs.append(_taken(anchor, spent))
    if theirs is not None:
        claim = Theirs("the peer's anchor, with which it may pay for the commitment")
        outputs.append(_of_peer("anchor", theirs, claim, spent))
    return outputs


def _of_peer(kind: str, found: FoundOutput, claim: Claim, spent: Spent) -> Output:
    output = Output(
        kind=kind,  # type: ignore[arg-type]
        owner="remote",
        amount_sat=found.output.value_sat,
        claim=claim,
        outpoint=found.outpoint,
    )
    return _taken(output, spent)


def _to_remote_of_ours(known: Known, found: FoundOutput, ending: SpentBy, spent: Spent) -> Output:
    """BOLT 5: `to_remote` "is considered *resolved* by the commitment transaction itself"; its key is the channel's and
    not the wallet's, though, so it is brought home."""
    spend = sweep.to_remote_output(known.params, *found)
    output = Output(
        kind="to_remote",
        owner="local",
        amount_sat=found.output.value_sat,
        claim=Sweep(spend),
        outpoint=found.outpoint,
        mature_height=ending.height + 1 if known.params.anchors else ending.height,
    )
    return _taken(output, spent)


def _trimmed(htlcs: Iterable[Htlc], shown: Iterable[Htlc]) -> list[Output]:
    """HTLCs of the channel that have no output here: too small, or not (any more) in this commitment."""
    there = {(htlc.offered, htlc.id) for htlc in shown}
    return [
        Output(
            kind="trimmed_htlc",
            owner="local" if htlc.offered else "remote",
            amount_sat=htlc.amount_msat // 1000,
            claim=Theirs("it has no output in this commitment: its amount is part of the fee, or of a balance"),
            htlc=htlc,
        )
        for htlc in htlcs
        if (htlc.offered, htlc.id) not in there
    ]


def _learn(preimages: dict[bytes, bytes], match: HtlcMatch, by: SpentBy | None) -> None:
    """BOLT 5, "MUST extract the payment preimage from the transaction input witness"."""
    if by is None:
        return
    found = preimage_in_witness(match, by.witness)
    if found is not None:
        preimages[match.htlc.payment_hash] = found


# --- our own commitment -------------------------------------------------------------------------------------------


def _local(known: Known, ending: SpentBy, spent: Spent, preimages: dict[bytes, bytes]) -> list[Output]:
    """BOLT 5, "Unilateral Close Handling: Local Commitment Transaction"."""
    params, local = known.params, known.local
    point = known.local_point
    found = identify_outputs(params, ending.tx, "local", point, local.spec.htlcs.values())
    built = build_commitment(params, local.spec.commitment_spec(), "local", local.index, point)
    outputs: list[Output] = []
    if found.to_local is not None:
        outputs.append(_taken(_to_local_of_ours(known, found.to_local, found.keys, ending), spent))
    if found.to_remote is not None:
        claim = Theirs("the peer's balance, which it takes itself")
        outputs.append(_of_peer("to_remote", found.to_remote, claim, spent))
    outputs += _anchors(known, found, ending, spent, True)
    matches = {match.outpoint: match for match in found.htlcs}
    for htlc_output, signature in zip(built.htlcs, local.remote_htlc_sigs, strict=True):
        match = matches[htlc_output.outpoint]
        outputs += _local_htlc(known, htlc_output, signature, match, found.keys, ending, spent)
        _learn(preimages, match, spent.get(match.outpoint))
    return outputs + _trimmed(known.htlcs_at_stake(local.spec), [output.htlc for output in built.htlcs])


def _to_local_of_ours(known: Known, found: FoundOutput, keys: CommitmentKeys, ending: SpentBy) -> Output:
    return Output(
        kind="to_local",
        owner="local",
        amount_sat=found.output.value_sat,
        claim=Sweep(sweep.delayed_output(known.params, keys, *found)),
        outpoint=found.outpoint,
        mature_height=ending.height + known.params.local_to_self_delay,
    )


def _local_htlc(
    known: Known,
    output: HtlcOutput,
    signature: bytes,
    match: HtlcMatch,
    keys: CommitmentKeys,
    ending: SpentBy,
    spent: Spent,
) -> list[Output]:
    """An HTLC output, and that of our HTLC transaction once it is in the chain."""
    htlc = output.htlc
    csv_height = ending.height + (1 if known.params.anchors else 0)
    preimage = b"" if htlc.offered else known.preimages.get(htlc.id, b"")
    mature: int | None = csv_height
    deadline: int | None = None
    if htlc.offered:
        # BOLT 5, "MUST *resolve* the output by spending it using the HTLC-timeout transaction."
        claim: Claim = HtlcTx(output, keys.per_commitment_point, signature)
        mature = max(csv_height, htlc.cltv_expiry + 1)
    elif preimage:
        # BOLT 5, "MUST *resolve* the output by spending it, using the HTLC-success transaction."
        claim = HtlcTx(output, keys.per_commitment_point, signature, preimage)
        deadline = htlc.cltv_expiry + 1
    else:
        claim, mature = NeedsPreimage(htlc.cltv_expiry), None
    by = spent.get(output.outpoint)
    own = by is not None and htlc_spent_by_owner(by.witness)
    first = Output(
        kind="htlc",
        owner="local" if htlc.offered or preimage else "remote",
        amount_sat=output.amount_sat,
        claim=claim,
        outpoint=output.outpoint,
        htlc=htlc,
        mature_height=mature,
        deadline_height=deadline,
        settled=htlc.offered and htlc.id not in known.offered,
        spent=by,
        taker=None if by is None else "local" if own else "remote",
    )
    if by is None or not own:
        return [first]
    place = OutPoint(by.txid, by.index)
    spend = sweep.delayed_output(known.params, keys, place, by.tx.outputs[by.index])
    second = Output(
        kind="htlc_tx",
        owner="local",
        amount_sat=spend.output.value_sat,
        claim=Sweep(spend),
        outpoint=place,
        htlc=htlc,
        mature_height=by.height + known.params.local_to_self_delay,
    )
    return [first, _taken(second, spent)]


# --- the peer's commitment ----------------------------------------------------------------------------------------


def _remote(
    known: Known, commit: RemoteCommit, ending: SpentBy, spent: Spent, preimages: dict[bytes, bytes]
) -> list[Output]:
    """BOLT 5, "Unilateral Close Handling: Remote Commitment Transaction"."""
    found = identify_outputs(known.params, ending.tx, "remote", commit.point, commit.spec.htlcs.values())
    outputs: list[Output] = []
    if found.to_local is not None:
        claim = Theirs("the peer's balance, which it takes itself after its delay")
        outputs.append(_of_peer("to_local", found.to_local, claim, spent))
    if found.to_remote is not None:
        outputs.append(_to_remote_of_ours(known, found.to_remote, ending, spent))
    outputs += _anchors(known, found, ending, spent, False)
    for match in found.htlcs:
        outputs.append(_remote_htlc(known, match, found.keys, ending, spent))
        _learn(preimages, match, spent.get(match.outpoint))
    return outputs + _trimmed(known.htlcs_at_stake(commit.spec), [match.htlc for match in found.htlcs])


def _remote_htlc(known: Known, match: HtlcMatch, keys: CommitmentKeys, ending: SpentBy, spent: Spent) -> Output:
    params, htlc = known.params, match.htlc
    csv_height = ending.height + (1 if params.anchors else 0)
    preimage = b"" if htlc.offered else known.preimages.get(htlc.id, b"")
    mature: int | None = csv_height
    deadline: int | None = None
    if htlc.offered:
        # BOLT 5, "MUST *resolve* the output, by spending it to a convenient address."
        claim: Claim = Sweep(sweep.remote_htlc_after_timeout(params, keys, match))
        mature = max(csv_height, htlc.cltv_expiry + 1)
    elif preimage:
        claim = Sweep(sweep.remote_htlc_with_preimage(params, keys, match, preimage))
        deadline = htlc.cltv_expiry + 1
    else:
        claim, mature = NeedsPreimage(htlc.cltv_expiry), None
    by = spent.get(match.outpoint)
    return Output(
        kind="htlc",
        owner="local" if htlc.offered or preimage else "remote",
        amount_sat=match.output.value_sat,
        claim=claim,
        outpoint=match.outpoint,
        htlc=htlc,
        mature_height=mature,
        deadline_height=deadline,
        settled=htlc.offered and htlc.id not in known.offered,
        spent=by,
        taker=None if by is None else "remote" if htlc_spent_by_owner(by.witness) else "local",
    )


# --- a revoked commitment -----------------------------------------------------------------------------------------


def _revoked(known: Known, number: int, ending: SpentBy, spent: Spent, preimages: dict[bytes, bytes]) -> list[Output]:
    """BOLT 5, "Revoked Transaction Close Handling"."""
    params = known.params
    point = per_commitment_point(known.secrets.secret(number))
    found = identify_outputs(params, ending.tx, "remote", point, known.revoked_htlcs())
    outputs: list[Output] = []
    if found.to_local is not None:
        # BOLT 5, "MUST *resolve* the _remote node's main output_ by spending it using the revocation private key."
        outputs.append(_penalty("to_local", sweep.revoked_output(params, found.keys, *found.to_local), ending, known))
    if found.to_remote is not None:
        outputs.append(_to_remote_of_ours(known, found.to_remote, ending, spent))
    outputs = [_raced(output, found.keys, spent) for output in outputs]
    outputs += _anchors(known, found, ending, spent, False)
    for match in found.htlcs:
        outputs += _revoked_htlc(known, match, found.keys, ending, spent)
        _learn(preimages, match, spent.get(match.outpoint))
    for stray in found.unknown:
        outputs.append(_of_peer("unknown", stray, Theirs("nothing that was kept explains this output"), spent))
    return outputs + _trimmed(known.offered.values(), [match.htlc for match in found.htlcs])


def _penalty(kind: str, spend: sweep.Spend, parent: SpentBy, known: Known, htlc: Htlc | None = None) -> Output:
    """The cheater's delayed output, of its commitment or of its HTLC transaction: ours until its delay is over."""
    return Output(
        kind=kind,  # type: ignore[arg-type]
        owner="local",
        amount_sat=spend.output.value_sat,
        claim=Sweep(spend, penalty=True),
        outpoint=spend.outpoint,
        htlc=htlc,
        mature_height=parent.height,
        deadline_height=parent.height + known.params.remote_to_self_delay,
    )


def _raced(output: Output, keys: CommitmentKeys, spent: Spent) -> Output:
    """With who was faster, told by the branch of the script that the spend took."""
    by = None if output.outpoint is None else spent.get(output.outpoint)
    if by is None:
        return output
    if output.kind == "to_remote":
        return replace(output, spent=by, taker="local")
    return replace(output, spent=by, taker="local" if by.witness[1:2] == (b"\x01",) else "remote")


def _revoked_htlc(known: Known, match: HtlcMatch, keys: CommitmentKeys, ending: SpentBy, spent: Spent) -> list[Output]:
    """BOLT 5, "spend the *commitment tx* using the payment revocation private key", or, if the cheater was faster, the
    output of its HTLC-timeout or HTLC-success transaction."""
    params, htlc = known.params, match.htlc
    by = spent.get(match.outpoint)
    taker = None if by is None else taker_of_htlc(by.witness, keys.revocation_pubkey)
    first = Output(
        kind="htlc",
        owner="local",
        amount_sat=match.output.value_sat,
        claim=Sweep(sweep.revoked_htlc(keys, match), penalty=True),
        outpoint=match.outpoint,
        htlc=htlc,
        mature_height=ending.height,
        # One that we offered it may take with the preimage now, one that it offered when that expired.
        deadline_height=ending.height + 1 if htlc.offered else max(ending.height, htlc.cltv_expiry) + 1,
        final=False,
        spent=by,
        taker=taker,
    )
    if by is None or taker != "remote" or by.index >= len(by.tx.outputs):
        return [first]
    place, txout = OutPoint(by.txid, by.index), by.tx.outputs[by.index]
    delayed = to_local_script(keys.revocation_pubkey, params.remote_to_self_delay, keys.owner_delayed_pubkey)
    if txout.script_pubkey != p2wsh(delayed):
        return [first]
    spend = sweep.revoked_output(params, keys, place, txout)
    return [first, _raced(_penalty("htlc_tx", spend, by, known, htlc), keys, spent)]


# --- a commitment that we do not know -----------------------------------------------------------------------------


def _unknown(known: Known, ending: SpentBy, spent: Spent, preimages: dict[bytes, bytes]) -> list[Output]:
    """BOLT 5: after a loss of data, a node "can derive its own `remotepubkey` for the transaction, in order to salvage
    its own funds. Note: in this scenario, the node will be unable to salvage the HTLCs". If it is our own, from before
    the loss, the same goes for `to_local` and for what our HTLC transactions had brought, unless we had revoked it."""
    ours = to_remote_script_pubkey(known.params, "remote")
    keys = _own_keys(known)
    delayed = b"" if keys is None else p2wsh(_delayed_script_of_ours(known, keys))
    outputs: list[Output] = []
    for vout, txout in enumerate(ending.tx.outputs):
        found = FoundOutput(OutPoint(ending.txid, vout), txout)
        if keys is not None and txout.script_pubkey == delayed:
            outputs.append(_taken_or_revoked(_to_local_of_ours(known, found, keys, ending), spent))
            continue
        if txout.script_pubkey == ours:
            outputs.append(_to_remote_of_ours(known, found, ending, spent))
            continue
        outputs.append(_of_peer("unknown", found, Theirs("it cannot be told what this is"), spent))
        by = spent.get(found.outpoint)
        if keys is None or by is None or by.index >= len(by.tx.outputs):
            continue
        second = FoundOutput(OutPoint(by.txid, by.index), by.tx.outputs[by.index])
        if second.output.script_pubkey == delayed:
            brought = replace(_to_local_of_ours(known, second, keys, by), kind="htlc_tx")
            outputs.append(_taken_or_revoked(brought, spent))
    hashes = {htlc.payment_hash for htlc in known.offered.values()}
    for output in outputs:
        for item in output.spent.witness if output.spent is not None else ():
            if len(item) == 32 and sha256(item) in hashes:
                preimages[sha256(item)] = item
    return outputs + _trimmed(known.offered.values(), ())


def _own_keys(known: Known) -> CommitmentKeys | None:
    """Those of our commitment, if the one in the chain may be ours."""
    if not known.own_point:
        return None
    return derive_commitment_keys(*known.params.owner_and_other("local"), known.own_point)


def _delayed_script_of_ours(known: Known, keys: CommitmentKeys) -> bytes:
    return to_local_script(keys.revocation_pubkey, known.params.local_to_self_delay, keys.owner_delayed_pubkey)


def _taken_or_revoked(output: Output, spent: Spent) -> Output:
    """With who took our delayed output: the peer can, if we had revoked it."""
    by = None if output.outpoint is None else spent.get(output.outpoint)
    if by is not None and by.witness[1:2] == (b"\x01",):
        return replace(output, spent=by, taker="remote")
    return _taken(output, spent)
