"""Microbenchmarks of BOLT 3: building, signing and verifying commitments, keys, per-commitment secrets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from channeld.bolt import shachain
from channeld.bolt.keys import derive_commitment_keys
from channeld.bolt.transactions import (
    BuiltCommitment,
    ChannelSecrets,
    CommitmentParams,
    CommitmentSpec,
    Htlc,
    build_commitment,
    verify_commitment,
)
from channeld.bolt.transactions.signing import first_invalid, sign_all
from wallet.bitcoin.tx import OutPoint

HTLC_COUNTS = (0, 10, 100, 483)


def _params(local: ChannelSecrets, remote: ChannelSecrets, anchors: bool) -> CommitmentParams:
    return CommitmentParams(
        funding_outpoint=OutPoint(bytes(range(32)), 0),
        funding_sat=100_000_000,
        local=local.keys,
        remote=remote.keys,
        local_is_opener=True,
        local_dust_limit_sat=354,
        remote_dust_limit_sat=354,
        local_to_self_delay=144,
        remote_to_self_delay=144,
        anchors=anchors,
    )


def _spec(num_htlcs: int) -> CommitmentSpec:
    htlcs = frozenset(
        Htlc(i, 5_000_000 + i, (b"%08d" % i) * 4, 800_000 + i % 50, offered=i % 2 == 0) for i in range(num_htlcs)
    )
    used_msat = sum(htlc.amount_msat for htlc in htlcs)
    return CommitmentSpec(htlcs, 2_500, 60_000_000_000 - used_msat, 40_000_000_000)


def _verified(built: BuiltCommitment, signature: bytes, htlc_signatures: list[bytes]) -> Callable[[], object]:
    return lambda: verify_commitment(built, signature, htlc_signatures)


def _build(params: CommitmentParams, spec: CommitmentSpec, point: bytes) -> Callable[[], object]:
    return lambda: build_commitment(params, spec, "remote", 42, point)


def _sign(secrets: ChannelSecrets, built: BuiltCommitment) -> Callable[[], object]:
    return lambda: secrets.sign_commitment(built)


def cases() -> list[tuple[str, Callable[[], object]]]:
    """(name, what to time). Building uses keys that are known already; deriving them is a case of its own."""
    local, remote = ChannelSecrets.from_seed(b"l" * 32), ChannelSecrets.from_seed(b"r" * 32)
    point = remote.per_commitment_point(42)
    result: list[tuple[str, Callable[[], object]]] = []
    for anchors in (True, False):
        params = _params(local, remote, anchors)
        kind = "anchors" if anchors else "static_remotekey"
        result += [(f"build {kind} {n} HTLCs", _build(params, _spec(n), point)) for n in HTLC_COUNTS]
    params = _params(local, remote, anchors=True)
    for num_htlcs in (0, 10, 100):
        built = build_commitment(params, _spec(num_htlcs), "remote", 42, point)
        result.append((f"sign {num_htlcs} HTLCs", _sign(local, built)))
        result.append((f"verify {num_htlcs} HTLCs", _verified(built, *local.sign_commitment(built))))
    digest = bytes(range(32))
    htlc_secret, htlc_pubkey = local.htlc_basepoint_secret, local.keys.htlc_basepoint
    signatures = sign_all(htlc_secret, [digest])
    result.append(("sign one digest", lambda: sign_all(htlc_secret, [digest])))
    result.append(("verify one digest", lambda: first_invalid(htlc_pubkey, [digest], signatures)))
    result.append(("derive a commitment's keys", lambda: derive_commitment_keys(remote.keys, local.keys, point)))
    return result + _shachain_cases()


def _shachain_cases() -> list[tuple[str, Callable[[], object]]]:
    generator = shachain.SecretGenerator(b"s" * 32)
    secrets = [generator.secret(number) for number in range(1_024)]
    numbers = count()
    state = {"store": shachain.SecretStore()}

    def insert() -> None:
        number = next(numbers) % 1_024
        store = shachain.SecretStore() if number == 0 else state["store"]
        state["store"] = store.insert(number, secrets[number])

    full = shachain.SecretStore()
    for number, secret in enumerate(secrets):
        full = full.insert(number, secret)
    fresh = count()
    return [
        ("shachain secret from the seed", lambda: shachain.generate_from_seed(b"s" * 32, shachain.MAX_INDEX)),
        ("shachain next secret", lambda: generator.secret(next(fresh))),
        ("shachain insert", insert),
        ("shachain old secret", lambda: full.secret(777)),
    ]
