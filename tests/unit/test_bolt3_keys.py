"""A channel's secrets, per-commitment secrets, trimming, and work spread over threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channeld.bolt import shachain
from channeld.bolt.keys import derive_pubkey, derive_revocation_pubkey
from channeld.bolt.transactions import (
    ChannelSecrets,
    CommitmentSpec,
    Htlc,
    InvalidSignature,
    Side,
    build_commitment,
    commitment_fee_sat,
    fees,
    is_trimmed,
    num_untrimmed,
    trim_limit_sat,
    verify_commitment,
)
from channeld.bolt.transactions.signing import first_invalid, sign_all
from tests.unit.bolt3_support import alice_and_bob, channel, mirrored_params, mirrored_spec, payment_hash
from wallet.bitcoin.encoding import tagged_hash
from wallet.bitcoin.secp import InvalidKey, pubkey_of, verify

ALICE, BOB = alice_and_bob()
T = TypeVar("T")


class Threads:
    """A `Parallel` over a pool, which counts what it was given."""

    workers = 3

    def __init__(self) -> None:
        self.jobs = 0
        self._pool = ThreadPoolExecutor(self.workers)

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        self.jobs += len(jobs)
        return list(self._pool.map(lambda job: job(), jobs))


def test_secrets_are_made_from_the_seed_as_documented() -> None:
    seed = b"s" * 32
    secrets = ChannelSecrets.from_seed(seed)
    assert secrets.funding_secret == tagged_hash(b"channeld/channel/funding", seed)
    assert secrets.revocation_basepoint_secret == tagged_hash(b"channeld/channel/revocation", seed)
    assert secrets.payment_basepoint_secret == tagged_hash(b"channeld/channel/payment", seed)
    assert secrets.delayed_payment_basepoint_secret == tagged_hash(b"channeld/channel/delayed", seed)
    assert secrets.htlc_basepoint_secret == tagged_hash(b"channeld/channel/htlc", seed)
    per_commitment_seed = tagged_hash(b"channeld/channel/per_commitment", seed)
    assert secrets.per_commitment_secret(0) == shachain.generate_from_seed(per_commitment_seed, 2**48 - 1)
    assert len(set(msgspec.structs.astuple(secrets.keys))) == 5
    assert ChannelSecrets.from_seed(seed).keys == secrets.keys
    assert ChannelSecrets.from_seed(b"t" * 32).keys != secrets.keys

    spliced = ChannelSecrets.from_seed(seed, funding_index=1)
    assert spliced.funding_secret == tagged_hash(b"channeld/channel/funding/1", seed)
    assert spliced.keys == msgspec.structs.replace(secrets.keys, funding_pubkey=pubkey_of(spliced.funding_secret))
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="seed has 32 bytes"):
            ChannelSecrets.from_seed(wrong)
        with pytest.raises(ValueError, match="seed has 32 bytes"):
            shachain.SecretGenerator(wrong)


def test_points_and_secrets_belong_together() -> None:
    secrets = ChannelSecrets.from_seed(b"s" * 32)
    for number in [*range(40), 255, 256, 65_535, 65_536, 3, shachain.MAX_COMMITMENT_NUMBER]:
        secret = secrets.per_commitment_secret(number)
        assert secrets.per_commitment_point(number) == pubkey_of(secret)
        assert pubkey_of(secrets.htlc_secret(pubkey_of(secret))) == derive_pubkey(
            secrets.keys.htlc_basepoint, pubkey_of(secret)
        )
        assert pubkey_of(secrets.delayed_secret(pubkey_of(secret))) == derive_pubkey(
            secrets.keys.delayed_payment_basepoint, pubkey_of(secret)
        )
        assert pubkey_of(secrets.revocation_secret(secret)) == derive_revocation_pubkey(
            secrets.keys.revocation_basepoint, pubkey_of(secret)
        )


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(0, shachain.MAX_COMMITMENT_NUMBER), max_size=20))
def test_generator_equals_the_text_in_any_order(seed: bytes, numbers: list[int]) -> None:
    generator = shachain.SecretGenerator(seed)
    for number in numbers:
        assert generator.secret(number) == shachain.generate_from_seed(seed, 2**48 - 1 - number)


@pytest.mark.parametrize("number", [-1, shachain.MAX_COMMITMENT_NUMBER + 1])
def test_there_is_no_such_commitment(number: int) -> None:
    with pytest.raises(ValueError, match="no commitment number"):
        shachain.secret_index(number)
    with pytest.raises(ValueError, match="no commitment number"):
        ALICE.per_commitment_secret(number)


def test_store_returns_every_secret_and_stays_small() -> None:
    generator = shachain.SecretGenerator(b"s" * 32)
    store = shachain.SecretStore()
    secrets = [generator.secret(number) for number in range(1_000)]
    for number, secret in enumerate(secrets):
        store = store.insert(number, secret)
        assert len(store.entries) == (number + 1).bit_length()
        assert store.secret(number) == secret
        assert store.secret(number // 3) == secrets[number // 3]
    assert [store.secret(number) for number in range(1_000)] == secrets
    encoded = msgspec.msgpack.encode(store)
    assert len(encoded) < 400
    assert msgspec.msgpack.decode(encoded, type=shachain.SecretStore) == store


def test_store_refuses_what_is_out_of_order_or_not_there() -> None:
    generator = shachain.SecretGenerator(b"s" * 32)
    store = shachain.SecretStore().insert(0, generator.secret(0))
    for number in (0, 2, -1):
        with pytest.raises(ValueError, match="next secret is that of commitment 1"):
            store.insert(number, generator.secret(1))
    with pytest.raises(ValueError, match="32 bytes"):
        store.insert(1, b"short")
    for number in (1, -1, 2**48):
        with pytest.raises(KeyError):
            store.secret(number)
    with pytest.raises(shachain.InconsistentSecret):
        store.insert(1, shachain.SecretGenerator(b"t" * 32).secret(1))


@pytest.mark.parametrize("wrong", [1, 2, 3, 7, 8, 100, 127, 255])
def test_store_finds_a_foreign_secret(wrong: int) -> None:
    """At once if others follow from it, else with the next secret, from which it should follow."""
    good, bad = shachain.SecretGenerator(b"s" * 32), shachain.SecretGenerator(b"t" * 32)
    store = shachain.SecretStore()
    found = wrong if wrong % 2 else wrong + 1
    for number in range(found):
        store = store.insert(number, (bad if number == wrong else good).secret(number))
    with pytest.raises(shachain.InconsistentSecret):
        store.insert(found, (bad if found == wrong else good).secret(found))


def _htlc(amount_msat: int, offered: bool) -> Htlc:
    return Htlc(0, amount_msat, payment_hash(0), 500, offered)


@pytest.mark.parametrize(
    ("anchors", "side", "offered", "limit_sat"),
    [
        (True, "local", True, 546),
        (True, "local", False, 546),
        (True, "remote", True, 354),
        (True, "remote", False, 354),
        (False, "local", True, 546 + 3_315),
        (False, "local", False, 546 + 3_515),
        (False, "remote", True, 354 + 3_515),
        (False, "remote", False, 354 + 3_315),
    ],
)
def test_trimming(anchors: bool, side: Side, offered: bool, limit_sat: int) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    assert trim_limit_sat(params, 5_000, side, offered == (side == "local")) == limit_sat
    for amount_msat, trimmed in ((limit_sat * 1000, False), (limit_sat * 1000 - 1, True)):
        htlc = _htlc(amount_msat, offered)
        assert is_trimmed(params, htlc, 5_000, side) == trimmed
        spec = CommitmentSpec(frozenset({htlc}), 5_000, 5_000_000_000, 4_000_000_000)
        assert num_untrimmed(params, spec, side) == 1 - trimmed
        weight = (1124 if anchors else 724) + 172 * (1 - trimmed)
        assert commitment_fee_sat(params, spec, side) == weight * 5_000 // 1000


def test_the_example_of_bolt_3() -> None:
    """BOLT 3, "Fee Calculation", "Example"."""
    params = channel(ALICE, BOB, anchors=False)
    amounts_msat = ((5_000_000, True), (1_000_000, True), (7_000_000, False), (800_000, False))
    htlcs = frozenset(_htlc(amount_msat, offered) for amount_msat, offered in amounts_msat)
    spec = CommitmentSpec(htlcs, 5_000, 5_000_000_000, 5_000_000_000 - 13_800_000)
    built = build_commitment(params, spec, "local", 0, ALICE.per_commitment_point(0))
    assert commitment_fee_sat(params, spec, "local") == 5_340
    assert built.fee_sat == 7_140
    assert [output.htlc_tx_amount_sat for output in built.htlcs] == [5_000 - 3_315, 7_000 - 3_515]
    assert sorted(htlc.amount_msat for htlc in built.trimmed) == [800_000, 1_000_000]


def test_fees_and_weights() -> None:
    assert fees.commit_tx_weight(0, anchors=False) == 724
    assert fees.commit_tx_weight(2, anchors=True) == 1124 + 344
    assert fees.funder_cost_sat(1_000, 2, anchors=True) == 1124 + 344 + 660
    assert fees.funder_cost_sat(1_000, 2, anchors=False) == fees.commit_tx_fee_sat(1_000, 2, anchors=False) == 1068
    assert (fees.htlc_timeout_fee_sat(1_999, True), fees.htlc_success_fee_sat(1_999, True)) == (0, 0)
    assert (fees.htlc_timeout_fee_sat(1_999, False), fees.htlc_success_fee_sat(1_999, False)) == (1_325, 1_405)
    assert fees.weight_fee_sat(1_999, 1_000) == 1_999


@pytest.mark.parametrize("num_htlcs", [3, 40])
def test_threads_give_the_same_result(num_htlcs: int) -> None:
    params = channel(ALICE, BOB)
    htlcs = frozenset(Htlc(i, 1_000_000 + 1_000 * i, payment_hash(i), 500, i % 2 == 0) for i in range(num_htlcs))
    used_msat = sum(htlc.amount_msat for htlc in htlcs)
    spec = CommitmentSpec(htlcs, 253, 6_000_000_000 - used_msat, 4_000_000_000)
    point = BOB.per_commitment_point(0)
    theirs = build_commitment(params, spec, "remote", 0, point)
    ours = build_commitment(mirrored_params(params), mirrored_spec(spec), "local", 0, point)
    threads = Threads()
    signature, htlc_signatures = ALICE.sign_commitment(theirs, threads)
    assert (signature, htlc_signatures) == ALICE.sign_commitment(theirs)
    verify_commitment(ours, signature, htlc_signatures, threads)
    assert threads.jobs == (0 if num_htlcs == 3 else 6)
    for index in (0, num_htlcs // 2, num_htlcs - 1):
        wrong = [bytes(64) if i >= index else s for i, s in enumerate(htlc_signatures)]
        with pytest.raises(InvalidSignature) as error:
            verify_commitment(ours, signature, wrong, threads)
        assert error.value.htlc_index == index


def test_signatures_over_lists() -> None:
    secret = b"k" * 32
    digests = [bytes((n,)) * 32 for n in range(4)]
    signatures = sign_all(secret, digests)
    assert all(verify(pubkey_of(secret), d, s) for d, s in zip(digests, signatures, strict=True))
    assert first_invalid(pubkey_of(secret), digests, signatures) is None
    assert first_invalid(pubkey_of(secret), digests, [*signatures[:3], signatures[0]]) == 3
    assert first_invalid(pubkey_of(secret), [], []) is None
    assert sign_all(secret, []) == []
    with pytest.raises(InvalidKey):
        first_invalid(bytes(33), digests, signatures)
