"""Which transactions in the mempool a tower takes for the client's own, and for how long it leaves them alone."""

from __future__ import annotations

import pytest
from msgspec import structs

from tests.tower_support import DELAY_BLOCKS, Revoked, key, revoked
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.script import p2wpkh
from wallet.chain import BroadcastOutcome, BroadcastResult
from wallet.rpc import RpcError
from watchtower.appointment import Mode, Terms, make_justice
from watchtower.justice import ELSEWHERE_PERMILLE, NEAR_BLOCKS, own_tx
from watchtower.tower import breach as breaches
from watchtower.tower.alerts import Alert, Alerts
from watchtower.tower.allies import ally_of, left_to
from watchtower.tower.breach import Attempt, Breach
from watchtower.tower.publisher import Publisher

HEIGHT = 1_000
RATE = 2_000


@pytest.fixture(scope="module")
def cheat() -> Revoked:
    return revoked("x", OutPoint(bytes(32), 0), 1_000_000, htlcs_sat=(60_000, 80_000))


def breach_of(cheat: Revoked, mode: Mode = "own") -> Breach:
    justice = make_justice(cheat.kit, Terms(mode))
    return Breach(1, 1, cheat.tx.txid(), cheat.tx.serialize(), justice, HEIGHT, 0.0)


def penalties_tx(cheat: Revoked, feerate_per_kw: int = RATE, script: bytes = b"") -> Tx:
    """All but `to_remote`, by the revocation key: what the client's node publishes, or another tower."""
    justice = make_justice(cheat.kit, Terms("own"))
    justice = structs.replace(justice, sweep_script=script or justice.sweep_script)
    places = [place for place, penalty in enumerate(cheat.kit.outputs) if penalty.kind != "to_remote"]
    outputs = [cheat.kit.outputs[place] for place in places]
    made = own_tx(justice, [cheat.outpoint(place) for place in places], outputs, feerate_per_kw)
    assert made is not None
    return made[0]


def left(breach: Breach, tx: Tx, height: int = HEIGHT, rate: int = RATE) -> int:
    """How many outputs are left to a transaction."""
    found = breaches.targets(breach)
    ally = ally_of(breach, found, tx)
    allies = [] if ally is None else [ally]
    return len(left_to(allies, {target.outpoint: target for target in found}, height, rate))


@pytest.mark.parametrize("mode", ["own", "blind"])
def test_justice_of_the_clients_own_is_left_alone(cheat: Revoked, mode: Mode) -> None:
    breach, tx = breach_of(cheat, mode), penalties_tx(cheat)
    assert left(breach, tx) == 3
    outpoints = frozenset(txin.outpoint for txin in tx.inputs)
    planned = breaches.plan(breach, HEIGHT, RATE, outpoints)
    assert {outpoint for made in planned for outpoint in made.outpoints} == (
        {cheat.outpoint(1)} if mode == "own" else set()
    )


def test_as_long_as_it_pays_what_we_would_pay(cheat: Revoked) -> None:
    breach, tx = breach_of(cheat), penalties_tx(cheat)
    assert left(breach, tx, rate=RATE * 5 // 4 - 10) == 3
    assert left(breach, tx, rate=RATE * 5 // 4 + 10) == 0


def test_near_the_deadline_nobody_is_relied_upon(cheat: Revoked) -> None:
    breach = breach_of(cheat)
    dear = penalties_tx(cheat, 200_000)
    end = HEIGHT + DELAY_BLOCKS
    assert left(breach, dear, end - NEAR_BLOCKS - 1) == 3
    assert left(breach, dear, end - NEAR_BLOCKS) == 0
    # What pays the estimate only is raised earlier: as the deadline comes, we would pay more.
    assert left(breach, penalties_tx(cheat), end - NEAR_BLOCKS - 3) == 0


def test_who_has_the_key_but_pays_elsewhere_is_a_thief(cheat: Revoked) -> None:
    breach = breach_of(cheat)
    assert left(breach, penalties_tx(cheat, script=p2wpkh(key("thief")))) == 0


@pytest.mark.parametrize(("permille", "leaves"), [(ELSEWHERE_PERMILLE - 5, 3), (ELSEWHERE_PERMILLE + 5, 0)])
def test_another_tower_may_have_its_reward(cheat: Revoked, permille: int, leaves: int) -> None:
    tx = penalties_tx(cheat)
    share = 540_000 * permille // 1000
    outputs = (
        TxOut(tx.outputs[0].value_sat - share, tx.outputs[0].script_pubkey),
        TxOut(share, p2wpkh(key("tower"))),
    )
    assert left(breach_of(cheat), tx.replace(outputs=outputs)) == leaves


def test_the_cheaters_own_and_mixtures_are_rivals(cheat: Revoked) -> None:
    breach, justice = breach_of(cheat), penalties_tx(cheat)
    assert left(breach, cheat.second_stage(2)) == 0
    # A cheater's HTLC transaction that pays the client something, too.
    stage = cheat.second_stage(2)
    assert left(breach, stage.replace(outputs=(TxOut(79_000, cheat.kit.sweep_script),))) == 0
    # What holds so much more cannot be told.
    other = TxIn(OutPoint(b"\x05" * 32, 0), b"", 0)
    assert left(breach, justice.replace(inputs=(*justice.inputs, other))) == 0


def test_our_own_is_no_ally(cheat: Revoked) -> None:
    tx = penalties_tx(cheat)
    ours = Attempt(tx.txid(), tx.serialize(), tuple(txin.outpoint for txin in tx.inputs), RATE, 1_000, HEIGHT)
    assert left(structs.replace(breach_of(cheat), attempts=(ours,)), tx) == 0


def test_the_clients_sweep_of_its_balance_is_left_alone_in_own_mode(cheat: Revoked) -> None:
    """Whatever it pays, to wherever, with whatever else. Blind, nothing else takes `to_local`."""
    others = TxIn(OutPoint(b"\x05" * 32, 0), b"", 0)
    sweep = Tx(2, (others, TxIn(cheat.outpoint(1), b"", 1)), (TxOut(99_000, p2wpkh(key("wallet"))),), 0)
    assert left(breach_of(cheat, "own"), sweep) == 1
    assert left(breach_of(cheat, "blind"), sweep) == 0


class FakeSource:
    """Layer 1 that takes everything, and does not know who spends what."""

    def __init__(self) -> None:
        self.sent: list[Tx] = []

    async def fee_rate_sat_per_kw(self, target_blocks: int) -> int:
        return RATE

    async def spending_tx_in_mempool(self, outpoint: OutPoint) -> Tx | None:
        raise RpcError(-32601, "Method not found", "gettxspendingprevout")

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        self.sent.append(tx)
        return BroadcastResult(BroadcastOutcome.ACCEPTED)


async def test_where_the_mempool_cannot_be_looked_into_the_tower_relies_on_nobody(cheat: Revoked) -> None:
    source, kept = FakeSource(), []

    async def save(breach: Breach, alerts: list[Alert]) -> None:
        kept.append(breach)

    publisher = Publisher(None, source, Alerts([]), save, lambda: 0.0)  # type: ignore[arg-type]
    await publisher.act(breach_of(cheat), HEIGHT)
    taken = {txin.outpoint for tx in source.sent for txin in tx.inputs}
    assert taken == {cheat.outpoint(place) for place in range(len(cheat.kit.outputs))}
    assert kept
