"""What the tests of BOLT 3 share: vectors, two parties' secrets, and Bitcoin Core's script engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pbk

from channeld.bolt.transactions import ChannelSecrets, CommitmentParams, CommitmentSpec
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


CommitmentKind = Literal["static_remotekey", "anchors"]
