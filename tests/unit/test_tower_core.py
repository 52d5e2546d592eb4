"""Blobs, justice, appointments, the index, and plans: the pure parts of the watchtower."""

from __future__ import annotations

import os
import zlib
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from tests.tower_support import DELAY_BLOCKS, FEE_SAT, Revoked, key, revoked
from tests.wallet_fakes import script_ok
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.encoding import tagged_hash
from wallet.bitcoin.script import p2wpkh
from wallet.fees import CREDIBLE_FEERATE_SAT_PER_KW, fee_for_tx
from watchtower import justice as jus
from watchtower.appointment import JusticeKit, Mode, Terms, fit_appointment, make_appointment, make_justice
from watchtower.blob import MAX_CONTENT_BYTES, OVERHEAD_BYTES, Undecipherable, padded_size, seal, unseal
from watchtower.tower import breach as br
from watchtower.tower.index import LocatorIndex, from_columns, prefix_of, prefixes_of_txids, to_column

FUNDING = OutPoint(b"\x09" * 32, 1)
BLIND, OWN = Terms("blind"), Terms("own")
HTLCS = (60_000, 80_000)


def cheat(htlcs: tuple[int, ...] = HTLCS, to_remote_sat: int = 100_000) -> Revoked:
    return revoked("a", FUNDING, 1_000_000, to_remote_sat=to_remote_sat, htlcs_sat=htlcs)


# --- blobs


@given(st.binary(max_size=3_000), st.binary(min_size=32, max_size=32))
def test_a_blob_opens_under_its_transaction_alone(content: bytes, txid: bytes) -> None:
    blob = seal(txid, content)
    assert unseal(txid, blob) == content
    assert seal(txid, content) == blob
    with pytest.raises(Undecipherable):
        unseal(bytes(32) if txid != bytes(32) else b"\x01" * 32, blob)
    with pytest.raises(Undecipherable):
        unseal(txid, blob[:-1] + bytes((blob[-1] ^ 1,)))


def test_different_contents_under_one_key_never_share_a_nonce() -> None:
    txid = b"\x07" * 32
    assert len({seal(txid, os.urandom(40))[:12] for _ in range(200)}) == 200


@given(st.integers(1, 1 << 20))
def test_padding_costs_half_at_most(size: int) -> None:
    padded = padded_size(size)
    assert size <= padded <= max(384, size * 3 // 2)
    assert padded_size(padded) == padded


def test_the_size_of_a_blob_tells_little() -> None:
    sizes = {len(make_appointment(cheat(HTLCS[:count]).kit, OWN).blob) for count in (1, 2, 1)}
    assert sizes == {768 + OVERHEAD_BYTES}


def test_a_bomb_is_not_unpacked() -> None:
    txid = b"\x07" * 32
    packed = zlib.compress(bytes(2 * MAX_CONTENT_BYTES))
    padded = len(packed).to_bytes(4, "big") + packed
    blob = bytes(12) + ChaCha20Poly1305(tagged_hash(b"watchtower/blob", txid)).encrypt(bytes(12), padded, None)
    with pytest.raises(Undecipherable, match="too large"):
        unseal(txid, blob)


@pytest.mark.parametrize("blob", [b"", bytes(5), bytes(40), os.urandom(500)])
def test_noise_is_no_blob(blob: bytes) -> None:
    with pytest.raises(Undecipherable):
        unseal(bytes(32), blob)


# --- justice


def test_blind_transactions_satisfy_the_scripts() -> None:
    """Every rung of every bundle is a transaction that Bitcoin Core's engine accepts."""
    revoked_ = cheat()
    justice = make_justice(revoked_.kit, Terms("blind", 50, p2wpkh(key("tower"))))
    assert jus.decode(jus.encode(justice)) == justice
    jus.check(justice, revoked_.tx)
    assert [bundle.places for bundle in justice.bundles] == [(0, 1, 2, 3), (0, 1), (2,), (3,)]
    for bundle in justice.bundles:
        spent = [revoked_.tx.outputs[justice.outputs[place].vout] for place in bundle.places]
        total = sum(output.value_sat for output in spent)
        assert [rung.feerate_per_kw for rung in bundle.rungs] == sorted(rung.feerate_per_kw for rung in bundle.rungs)
        for rung in bundle.rungs:
            tx = jus.rung_tx(justice, revoked_.kit.txid, bundle, rung)
            assert all(script_ok(tx, index, spent) for index in range(len(spent)))
            fee = total - sum(output.value_sat for output in tx.outputs)
            assert fee_for_tx(rung.feerate_per_kw, tx.weight()) <= fee <= total * 9 // 10
            assert rung.reward_sat == total * 50 // 1000


def test_own_mode_tells_the_revocation_key_and_signs_to_remote_beforehand() -> None:
    revoked_ = cheat()
    justice = make_justice(revoked_.kit, OWN)
    assert justice.revocation_secret == revoked_.kit.revocation_secret
    assert [bundle.places for bundle in justice.bundles] == [(1,)]
    assert revoked_.kit.payment_secret not in jus.encode(justice)
    assert revoked_.kit.revocation_secret not in jus.encode(make_justice(revoked_.kit, BLIND))


def test_to_remote_without_anchors_is_a_p2wpkh_output() -> None:
    secret = revoked("a", FUNDING, 1_000_000).kit.payment_secret
    penalty = jus.Penalty("to_remote", 0, 50_000, b"", (key("a payment"),))
    breach = Tx(2, (TxIn(FUNDING),), (TxOut(50_000, p2wpkh(key("a payment"))),), 0)
    kit = JusticeKit(breach.txid(), (penalty,), b"\x01" * 32, secret, b"", 144, p2wpkh(key("sweep")))
    justice = make_justice(kit, BLIND)
    jus.check(justice, breach)
    for rung in justice.bundles[0].rungs:
        assert script_ok(jus.rung_tx(justice, kit.txid, justice.bundles[0], rung), 0, list(breach.outputs))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outputs": ()}, "no output"),
        ({"version": 9}, "version 9"),
        ({"reward_permille": 900}, "reward"),
        ({"sweep_script": b""}, "script"),
        ({"revocation_secret": bytes(32)}, "revocation key"),
        ({"to_self_delay_blocks": -1}, "delay"),
        ({"to_self_delay_blocks": 1 << 16}, "delay"),
        ({"bundles": (jus.Bundle((0, 0), ()),)}, "twice"),
        ({"bundles": (jus.Bundle((0,), ()),) * (jus.MAX_BUNDLES + 1)}, "not readable"),
        ({"bundles": (jus.Bundle((0,), ()),) * 9}, "again and again"),
        ({"revocation_secret": b"\x01" * 32, "bundles": ()}, "nothing in the blob is signed"),
        ({"revocation_secret": b"", "bundles": (jus.Bundle((1,), (jus.Rung(253, 1, 0, bytes(64)),)),)}, "nothing"),
    ],
)
def test_nonsense_in_a_blob_is_named(changes: dict[str, object], words: str) -> None:
    revoked_ = cheat()
    bad = msgspec.structs.replace(make_justice(revoked_.kit, OWN), **changes)
    with pytest.raises(jus.InvalidJustice, match=words):
        jus.check(jus.decode(jus.encode(bad)), revoked_.tx)


@pytest.mark.parametrize("mode", ["blind", "own"])
def test_as_many_htlcs_as_a_commitment_can_have_fit_into_a_blob(mode: Mode) -> None:
    amounts = [10_000 + number for number in range(jus.MAX_OUTPUTS - 2)]
    revoked_ = revoked("many", FUNDING, 20_000_000, htlcs_sat=amounts)
    blob = make_appointment(revoked_.kit, Terms(mode)).blob
    justice = jus.decode(unseal(revoked_.kit.txid, blob))
    jus.check(justice, revoked_.tx)
    assert len(justice.outputs) == jus.MAX_OUTPUTS
    assert len(jus.encode(justice)) < MAX_CONTENT_BYTES // 2


def test_outputs_that_are_not_the_transactions_are_refused() -> None:
    revoked_ = cheat()
    justice = make_justice(revoked_.kit, OWN)
    for vout, amount in ((7, 400_000), (1, 400_000), (0, 1)):
        other = msgspec.structs.replace(justice.outputs[0], vout=vout, amount_sat=amount)
        with pytest.raises(jus.InvalidJustice):
            jus.check(msgspec.structs.replace(justice, outputs=(other,), bundles=()), revoked_.tx)
    with pytest.raises(jus.InvalidJustice, match="twice"):
        jus.check(msgspec.structs.replace(justice, outputs=justice.outputs[:1] * 2, bundles=()), revoked_.tx)
    with pytest.raises(jus.InvalidJustice, match="not readable"):
        jus.decode(b"\x93\x01")


@pytest.mark.parametrize("sequence", [-1, 1 << 32, 1 << 40])
def test_a_sequence_that_no_input_can_have_is_named(sequence: int) -> None:
    revoked_ = cheat()
    justice = make_justice(revoked_.kit, OWN)
    bent = msgspec.structs.replace(justice.outputs[0], sequence=sequence)
    with pytest.raises(jus.InvalidJustice, match="sequence"):
        jus.check(msgspec.structs.replace(justice, outputs=(bent, *justice.outputs[1:])), revoked_.tx)


def test_text_in_a_blob_that_is_no_text_is_not_readable() -> None:
    """The decoder has an error of its own for that; uncaught it stopped the search of a block."""
    content = jus.encode(make_justice(cheat().kit, OWN)).replace(b"to_local", b"to_\xd2\xffcal")
    with pytest.raises(jus.InvalidJustice, match="not readable"):
        jus.decode(content)


def test_a_blob_that_is_too_large_loses_fee_rates_first() -> None:
    kit = revoked("a", FUNDING, 10_000_000, htlcs_sat=(30_000,) * 60).kit
    whole = make_appointment(kit, BLIND)
    fitted = fit_appointment(kit, BLIND, len(whole.blob) * 4 // 5)
    assert len(fitted.blob) <= len(whole.blob) * 4 // 5
    bundles = jus.decode(unseal(kit.txid, fitted.blob)).bundles
    assert [rung.feerate_per_kw for rung in bundles[0].rungs] == [1_000, 40_000]
    assert [rung.feerate_per_kw for rung in bundles[1].rungs] == [1_000, 6_250, 40_000]
    with pytest.raises(ValueError, match="takes"):
        fit_appointment(kit, BLIND, 1_000)


def test_few_signatures_for_many_htlcs_and_the_highest_fee_rate_for_every_set() -> None:
    """Signatures are what a blind blob costs its maker."""
    kit = revoked("a", FUNDING, 10_000_000, htlcs_sat=(30_000,) * 60).kit
    bundles = make_justice(kit, BLIND).bundles
    assert all(bundle.rungs[-1].feerate_per_kw == BLIND.ladder_per_kw[-1] for bundle in bundles)
    assert sum(len(rung.signatures) for bundle in bundles for rung in bundle.rungs) == 64 * (3 * 62 + 6 * 2 + 3 * 60)


# --- the index


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=60), st.lists(st.binary(min_size=16, max_size=16)))
def test_the_index_finds_what_was_added(known: list[bytes], fresh: list[bytes]) -> None:
    columns = sorted(to_column(prefix_of(locator)) for locator in known)
    index = LocatorIndex(from_columns(np.array(columns, dtype=np.int64)))
    index.add(map(prefix_of, fresh))
    asked = [*known, *fresh, b"\x01" * 16]
    expected = [place for place, txid in enumerate(asked) if txid[:8] in {each[:8] for each in [*known, *fresh]}]
    if asked:
        assert index.matches(prefixes_of_txids(asked)) == expected
    assert all(prefix_of(locator) in index for locator in [*known, *fresh])


def test_many_fresh_ones_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("watchtower.tower.index.MERGE_AT", 100)
    index = LocatorIndex()
    locators = [os.urandom(16) for _ in range(1_000)]
    for locator in locators:
        index.add([prefix_of(locator)])
    assert len(index._ordered) >= 900
    assert list(index._ordered) == sorted(index._ordered)
    assert index.matches(prefixes_of_txids(locators)) == list(range(1_000))


# --- plans


def breach_of(revoked_: Revoked, terms: Terms, height: int = 100) -> br.Breach:
    justice = make_justice(revoked_.kit, terms)
    return br.Breach(1, 1, revoked_.kit.txid, revoked_.tx.serialize(), justice, height, 0.0)


def attempt(planned: br.Planned, height: int = 100, problem: str = "", underpaid: bool = False) -> br.Attempt:
    return br.Attempt(
        planned.tx.txid(),
        planned.tx.serialize(),
        planned.outpoints,
        planned.feerate_per_kw,
        planned.fee_sat,
        height,
        problem,
        underpaid,
    )


def with_attempts(breach: br.Breach, *attempts: br.Attempt) -> br.Breach:
    return msgspec.structs.replace(breach, attempts=(*breach.attempts, *attempts))


def spend(breach: br.Breach, tx: Tx, height: int = 101) -> br.Breach:
    return br.with_spend(breach, br.Spend(tx.txid(), height, tx.serialize()))


def test_one_transaction_first_and_the_parts_after_a_refusal() -> None:
    for terms, sizes, parts in ((BLIND, [4], [2, 1, 1]), (OWN, [3, 1], [1, 1, 1])):
        breach = breach_of(cheat(), terms)
        planned = br.plan(breach, 100, 1_000)
        assert [len(made.outpoints) for made in planned] == sizes
        refused = with_attempts(breach, attempt(planned[0], problem="refused"))
        again = [len(made.outpoints) for made in br.plan(refused, 100, 1_000)]
        assert sorted(again) == sorted([*parts, *sizes[1:]])


def test_an_attempt_is_left_alone_until_it_must_pay_a_quarter_more() -> None:
    breach = breach_of(cheat(), OWN)
    breach = with_attempts(breach, *map(attempt, br.plan(breach, 100, 1_000)))
    assert br.plan(breach, 101, 1_100) == []
    raised = br.plan(breach, 101, 20_000)
    assert {made.outpoints for made in raised} == {each.outpoints for each in breach.attempts}
    for made in raised:
        before = next(each for each in breach.attempts if each.outpoints == made.outpoints)
        assert made.fee_sat >= before.fee_sat + made.tx.vsize()
        assert made.feerate_per_kw >= (20_000 if len(made.outpoints) > 1 else 16_000)


def bids_of(breach: br.Breach, place: int) -> list[br.Planned]:
    """For an output alone, when every attempt is refused for what it pays."""
    outpoint = OutPoint(breach.txid, breach.justice.outputs[place].vout)
    bids: list[br.Planned] = []
    while True:
        for made in br.plan(breach, 100, 1_000):
            if made.outpoints == (outpoint,):
                if bids and made.fee_sat <= bids[-1].fee_sat:
                    return bids
                bids.append(made)
            breach = with_attempts(breach, attempt(made, problem="insufficient fee", underpaid=True))


def test_what_was_refused_for_its_fee_pays_twice_as_much_up_to_the_budget() -> None:
    bids = bids_of(breach_of(cheat(), OWN), 2)
    rates = [bid.feerate_per_kw for bid in bids]
    assert all(1.9 < after / before < 2.1 for before, after in pairwise(rates[:-1]))
    assert 53_500 < bids[-1].fee_sat <= 54_000
    assert len(bids) < 10


def test_what_was_refused_for_its_fee_climbs_the_ladder_rung_by_rung() -> None:
    assert [bid.feerate_per_kw for bid in bids_of(breach_of(cheat(), BLIND), 2)] == [1_000, 6_250, 40_000]


def test_what_has_no_parts_is_tried_again_as_a_whole() -> None:
    """Without HTLCs a blind tower has one transaction alone."""
    breach = breach_of(cheat(()), BLIND)
    rates = []
    for _ in range(6):
        (made,) = br.plan(breach, 100, 1_000)
        rates.append(made.feerate_per_kw)
        breach = with_attempts(breach, attempt(made, problem="mempool min fee not met", underpaid=True))
    assert rates == [1_000, 2_500, 6_250, 16_000, 40_000, 40_000]


def test_the_fee_rises_to_the_budget_as_the_deadline_nears() -> None:
    breach = breach_of(cheat(()), OWN)
    fees = [br.plan(breach, 100 + passed, 1_000)[0].fee_sat for passed in range(DELAY_BLOCKS - 1)]
    assert fees == sorted(fees)
    assert fees[-1] > 340_000
    assert all(fee <= 360_000 for fee in fees)


@pytest.mark.parametrize("estimate", [2_000_000, 10**9])
def test_an_absurd_estimate_neither_stops_justice_nor_gives_it_all_to_miners(estimate: int) -> None:
    breach = breach_of(cheat(()), OWN)
    to_local = br.targets(breach)[0].outpoint
    (made,) = [made for made in br.plan(breach, 100, estimate) if made.outpoints == (to_local,)]
    assert 300_000 < made.fee_sat <= 360_000
    rich = br.Target(
        OutPoint(bytes(32), 0), msgspec.structs.replace(br.targets(breach)[0].penalty, amount_sat=10**9), 0, 120, "open"
    )
    assert br.wanted_feerate([rich], 100, estimate, 10**7) == CREDIBLE_FEERATE_SAT_PER_KW


def test_the_ladder_ends_at_its_top() -> None:
    breach = breach_of(cheat(()), BLIND)
    (top,) = br.plan(breach, 100, 1_000_000)
    assert top.feerate_per_kw == 40_000
    assert br.plan(with_attempts(breach, attempt(top)), 101, 1_000_000) == []


def test_what_the_cheater_moves_on_is_followed_in_own_mode() -> None:
    revoked_ = cheat()
    stage = revoked_.second_stage(2)
    own = spend(breach_of(revoked_, OWN), stage)
    assert [target.state for target in br.targets(own)] == ["open", "open", "second stage", "open", "open"]
    assert br.targets(own)[-1].deadline_height == 101 + DELAY_BLOCKS
    (made, raced, _) = br.plan(own, 101, 1_000)
    assert made.outpoints == (revoked_.outpoint(0), stage.outpoint(0))
    spent = [revoked_.tx.outputs[0], stage.outputs[0]]
    assert all(script_ok(made.tx, index, spent) for index in range(2))
    assert raced.outpoints == (revoked_.outpoint(3),)
    blind = spend(breach_of(revoked_, BLIND), stage)
    assert [target.state for target in br.targets(blind)] == ["open", "open", "second stage", "open"]
    assert sorted(len(made.outpoints) for made in br.plan(blind, 101, 1_000)) == [1, 2]


def test_a_cheater_with_an_htlc_for_every_block_does_not_hold_up_what_it_cannot_take_yet() -> None:
    """Each of its transactions would void one for all outputs, until the delay of the first is over."""
    revoked_ = cheat((60_000, 70_000, 80_000))
    breach = breach_of(revoked_, OWN)
    (everything, _) = br.plan(breach, 100, 1_000)
    assert len(everything.outpoints) == 4
    breach = spend(with_attempts(breach, attempt(everything)), revoked_.second_stage(2), 101)
    first = br.plan(breach, 101, 1_000)
    raced = with_attempts(breach, *map(attempt, first))
    again = spend(raced, revoked_.second_stage(3), 102)
    live = br.live_attempts(again, br.targets(again))
    assert [revoked_.outpoint(0) in each.outpoints for each in live] == [True, False], "it may be mined all the same"
    assert {len(made.outpoints) for made in br.plan(again, 102, 1_000)} == {1}


def test_a_crowd_of_sessions_with_one_transaction_does_not_come_before_the_others() -> None:
    def of(number: int, name: str, to_local_sat: int) -> br.Breach:
        made = revoked(name, FUNDING, 1_000_000, to_local_sat=to_local_sat)
        return msgspec.structs.replace(breach_of(made, OWN), breach_id=number)

    crowd = [of(number, "crowd", 500_000) for number in range(1, 6)]
    known = [*crowd, of(6, "small", 10_000), of(7, "large", 600_000)]
    assert [breach.breach_id for breach in br.in_turn(known)] == [7, 1, 6, 2, 3, 4, 5]


def test_theft_is_lost_and_justice_is_saved() -> None:
    revoked_ = cheat(())
    breach = breach_of(revoked_, OWN)
    justice = br.plan(breach, 100, 1_000)
    saved = spend(spend(breach, justice[0].tx), justice[1].tx)
    assert [target.state for target in br.targets(saved)] == ["saved", "saved"]
    lost = spend(breach, revoked_.theft(revoked_.outpoint(0), 400_000), 130)
    assert [target.state for target in br.targets(lost)] == ["lost", "open"]
    assert not br.is_resolved(saved, 199)
    assert br.is_resolved(saved, 201)
    assert not br.is_resolved(lost, 400)
    undone = br.without_blocks_from(saved, 101)
    assert [target.state for target in br.targets(undone)] == ["open", "open"]
    assert br.without_blocks_from(saved, 102) is saved
    gone = br.without_blocks_from(saved, 100)
    assert gone.height is None
    assert br.plan(gone, 99, 1_000) == []


def test_dust_is_not_taken_at_a_loss() -> None:
    breach = breach_of(cheat((1_500, 60_000)), OWN)
    taken = {outpoint for made in br.plan(breach, 100, 10_000) for outpoint in made.outpoints}
    assert len(taken) == 3
    assert len({outpoint for made in br.plan(breach, 100, 500) for outpoint in made.outpoints}) == 4
    tiny = breach_of(cheat((400,), to_remote_sat=0), BLIND)
    assert [br.is_economic(target, tiny) for target in br.targets(tiny)] == [True, True]
    nothing = breach_of(revoked("a", FUNDING, 1_000_000, 350, 0), OWN)
    assert br.plan(nothing, 100, 253) == []
    assert not br.is_economic(br.targets(nothing)[0], nothing)
    assert FEE_SAT > 0
