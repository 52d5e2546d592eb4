"""What the tests of BOLT 3 share: vectors, two parties' secrets, and Bitcoin Core's script engine."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pbk
from hypothesis import strategies as st

from channeld.bolt.transactions import ChannelSecrets, CommitmentParams, CommitmentSpec, Htlc
from wallet.bitcoin.tx import OutPoint, Tx, TxOut

VECTORS = Path(__file__).parents[1] / "vectors" / "bolt03"
FLAGS = pbk.ScriptVerificationFlags.ALL & ~pbk.ScriptVerificationFlags.TAPROOT


def vectors(name: str) -> Any:
    """The parsed file `tests/vectors/bolt03/<name>.json`."""
    return json.loads((VECTORS / f"{name}.json").read_text())


def script_ok(tx: Tx, index: int, spent: TxOut) -> bool:
    """Whether Bitcoin Core's engine accepts input `index` of `tx` as a spend of `spent`."""
    transaction = pbk.Transaction(tx.serialize())
    script = pbk.ScriptPubkey(spent.script_pubkey)
    try:
        return bool(script.verify(spent.value_sat, transaction, None, index, FLAGS))
    except pbk.ScriptVerifyException:
        return False


def mirrored_params(params: CommitmentParams) -> CommitmentParams:
    """The same channel from the peer's view."""
    return msgspec.structs.replace(
        params,
        local=params.remote,
        remote=params.local,
        local_is_opener=not params.local_is_opener,
        local_dust_limit_sat=params.remote_dust_limit_sat,
        remote_dust_limit_sat=params.local_dust_limit_sat,
        local_to_self_delay=params.remote_to_self_delay,
        remote_to_self_delay=params.local_to_self_delay,
    )


def mirrored_spec(spec: CommitmentSpec) -> CommitmentSpec:
    """The same balances and HTLCs from the peer's view."""
    return CommitmentSpec(
        frozenset(msgspec.structs.replace(htlc, offered=not htlc.offered) for htlc in spec.htlcs),
        spec.feerate_per_kw,
        spec.to_remote_msat,
        spec.to_local_msat,
    )


def alice_and_bob() -> tuple[ChannelSecrets, ChannelSecrets]:
    """Two parties' secrets."""
    return ChannelSecrets.from_seed(b"a" * 32), ChannelSecrets.from_seed(b"b" * 32)


def channel(
    alice: ChannelSecrets,
    bob: ChannelSecrets,
    *,
    anchors: bool = True,
    local_is_opener: bool = True,
    funding_sat: int = 10_000_000,
) -> CommitmentParams:
    """A channel between the two, from Alice's view."""
    return CommitmentParams(
        funding_outpoint=OutPoint(bytes(range(32)), 3),
        funding_sat=funding_sat,
        local=alice.keys,
        remote=bob.keys,
        local_is_opener=local_is_opener,
        local_dust_limit_sat=546,
        remote_dust_limit_sat=354,
        local_to_self_delay=144,
        remote_to_self_delay=720,
        anchors=anchors,
    )


def preimage(number: int) -> bytes:
    """The preimage of the tests' HTLCs, by their `payment_hash`'s number."""
    return sha256(b"preimage %d" % number).digest()


def payment_hash(number: int) -> bytes:
    """The payment hash of `preimage(number)`."""
    return sha256(preimage(number)).digest()


@st.composite
def channels_and_specs(
    draw: st.DrawFn, max_htlcs: int = 12
) -> tuple[CommitmentParams, CommitmentSpec, dict[bytes, bytes]]:
    """(channel from Alice's view, a spec that spends all of it, preimages by payment hash), with amounts around the
    dust limits and many HTLCs that look alike."""
    alice, bob = alice_and_bob()
    params = channel(alice, bob, anchors=draw(st.booleans()), local_is_opener=draw(st.booleans()))
    feerate = draw(st.sampled_from((0, 253, 253, 1_000, 5_000, 25_000)))
    numbers = st.integers(0, 3)
    amounts_msat = st.one_of(
        st.integers(0, 5_000_000), st.sampled_from((353_999, 354_000, 546_000, 546_999, 1_000_000, 20_000_000))
    )
    htlcs = draw(
        st.lists(
            st.tuples(amounts_msat, numbers, st.sampled_from((1, 16, 17, 128, 500_000, 500_001)), st.booleans()),
            max_size=max_htlcs,
        )
    )
    entries = frozenset(
        Htlc(index, amount_msat, payment_hash(number), expiry, offered)
        for index, (amount_msat, number, expiry, offered) in enumerate(htlcs)
    )
    left_msat = params.funding_sat * 1000 - sum(htlc.amount_msat for htlc in entries)
    to_local_msat = draw(
        st.one_of(st.integers(0, left_msat), st.sampled_from((0, 353_999, 354_000, 545_999, 546_000, left_msat)))
    )
    spec = CommitmentSpec(entries, feerate, to_local_msat, left_msat - to_local_msat)
    return params, spec, {payment_hash(number): preimage(number) for number in range(4)}
