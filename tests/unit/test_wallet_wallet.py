"""The wallet on a chain: what it owns, sends, undoes after reorganisations, and remembers."""

from __future__ import annotations

import random
from typing import cast

import pytest

from tests.wallet_fakes import script_ok
from tests.wallet_world import STRANGER, STRANGER_ADDRESS, World
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST, AddressError, address_of, script_of
from wallet.chain import (
    BlockConnected,
    BlockDisconnected,
    BlockRef,
    BroadcastOutcome,
    BroadcastResult,
    ChainSource,
    Synced,
)
from wallet.errors import (
    BroadcastRejected,
    CannotBump,
    CoinUnavailable,
    DustOutput,
    FeeTooHigh,
    InsufficientFunds,
    InvalidAmount,
    InvalidFeeRate,
    OutOfStep,
    UnknownReservation,
    UnknownTransaction,
    WrongSeed,
)
from wallet.fees import feerate_of
from wallet.funding import Request
from wallet.keys import CHANGE, EXTERNAL, AddressKind, KeyPath, Seed
from wallet.views import Balance
from wallet.wallet import Wallet

RATE = 1_000


@pytest.fixture
async def world() -> World:
    assert address_of(STRANGER, REGTEST) == STRANGER_ADDRESS
    world = World()
    await world.start()
    return world


async def test_addresses_are_fresh_and_survive_restarts(world: World) -> None:
    first = [await world.wallet.new_address(kind) for kind in ("p2tr", "p2wpkh", "p2tr")]
    assert [address[:6] for address in first] == ["bcrt1p", "bcrt1q", "bcrt1p"]
    wallet = await world.restart()
    later = [await wallet.new_address(), await wallet.new_address("p2wpkh")]
    assert len(set(first + later)) == 5
    assert all(wallet.is_ours(script_of(address, REGTEST)) for address in first + later)


async def test_receiving_confirms_and_is_remembered(world: World) -> None:
    await world.receive(50_000)
    await world.receive(30_000, kind="p2wpkh")
    assert world.wallet.balance() == Balance(80_000, 0, 0, 0)
    assert [coin.confirmations for coin in world.wallet.coins()] == [2, 1]
    before = world.wallet.transactions()
    wallet = await world.restart()
    assert wallet.balance() == Balance(80_000, 0, 0, 0)
    assert wallet.transactions() == before
    assert wallet.tip == BlockRef(2, world.chain.active[2])
    recent, birthday = wallet.follow_from()
    assert recent is not None
    assert [ref.height for ref in recent] == [1, 2]
    assert birthday is None


async def test_a_block_that_does_not_concern_us_costs_one_row(world: World) -> None:
    await world.receive(50_000)
    world.chain.mine(1, world.payment((1_000, STRANGER)))
    writes = world.wallet.process(BlockConnected(2, world.chain.active[2], world.chain.block(2)))
    assert [(write.verb, write.table.name) for write in writes] == [("insert", "wallet_blocks")]


async def test_old_blocks_are_let_go(world: World) -> None:
    await world.mine(450)
    recent, _ = (await world.restart()).follow_from()
    assert recent is not None
    assert [ref.height for ref in recent] == list(range(recent[0].height, 451))
    assert 200 <= len(recent) <= 404


async def test_a_new_wallet_begins_at_the_present_tip() -> None:
    world = World()
    world.chain.mine(5)
    wallet = await world.start(birthday_height=None)
    assert wallet.follow_from() == (None, None)
    world.store.commit_now(wallet.process(Synced(5, world.chain.active[5])))
    wallet = await world.restart()
    assert wallet.follow_from() == ([BlockRef(5, world.chain.active[5])], None)
    await world.receive(1_000)
    assert wallet.balance().confirmed_sat == 1_000


async def test_coinbase_matures_after_100_blocks(world: World) -> None:
    script = await world.wallet.new_script()
    await world.mine(payout=(TxOut(50_0000_0000, script),))
    assert world.wallet.balance() == Balance(0, 0, 50_0000_0000, 0)
    with pytest.raises(InsufficientFunds):
        await world.wallet.send(STRANGER_ADDRESS, 1_000, RATE)
    outpoint = world.wallet.coins()[0].outpoint
    with pytest.raises(CoinUnavailable, match="not mature"):
        await world.wallet.create_tx([TxOut(1_000, STRANGER)], RATE, only=[outpoint])
    await world.mine(99)
    assert world.wallet.balance() == Balance(50_0000_0000, 0, 0, 0)
    await world.wallet.send(STRANGER_ADDRESS, 1_000, RATE)


async def test_gap_limit_looks_ahead_within_one_block() -> None:
    """A restored seed finds coins beyond the gap as long as each gap is small, even all in one block, last first."""
    world = World(gap_limit=20)
    await world.start()
    for kind in AddressKind:
        for chain in (EXTERNAL, CHANGE):
            paths = [KeyPath(kind, chain, child) for child in (55, 37, 19)]
            txs = [world.payment((10_000, world.keys.script(path))) for path in paths]
            await world.mine(1, *txs)
    assert world.wallet.balance().confirmed_sat == 12 * 10_000
    out_of_reach = world.payment((10_000, world.keys.script(KeyPath(AddressKind.P2TR, EXTERNAL, 56 + 20))))
    await world.mine(1, out_of_reach)
    assert world.wallet.balance().confirmed_sat == 12 * 10_000
    wallet = await world.restart()
    assert wallet.balance().confirmed_sat == 12 * 10_000
    assert script_of(await wallet.new_address(), REGTEST) == world.keys.script(KeyPath(AddressKind.P2TR, EXTERNAL, 56))


async def test_a_wider_gap_counts_from_then_on() -> None:
    world = World(gap_limit=20)
    await world.start()
    far = world.keys.script(KeyPath(AddressKind.P2TR, EXTERNAL, 50))
    await world.mine(1, world.payment((10_000, far)))
    world.options["gap_limit"] = 60
    wallet = await world.restart()
    assert wallet.balance().confirmed_sat == 0
    await world.mine(1, world.payment((10_000, far)))
    assert wallet.balance().confirmed_sat == 10_000
    world.options["gap_limit"] = 20
    wallet = await world.restart()
    await world.mine(1, world.payment((5_000, world.keys.script(KeyPath(AddressKind.P2TR, EXTERNAL, 70)))))
    assert wallet.balance().confirmed_sat == 15_000, "what was looked for still is"


async def test_one_transaction_paying_beyond_the_gap_twice() -> None:
    world = World(gap_limit=20)
    await world.start()
    far = [KeyPath(AddressKind.P2TR, EXTERNAL, child) for child in (38, 19)]
    await world.mine(1, world.payment(*((5_000, world.keys.script(path)) for path in far)))
    assert world.wallet.balance().confirmed_sat == 10_000


async def test_send_tracks_unconfirmed_change(world: World) -> None:
    await world.receive(100_000, 100_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 120_000, RATE, label="rent")
    assert sent.broadcast == BroadcastResult(BroadcastOutcome.ACCEPTED)
    assert world.mempool.txs[sent.txid] == sent.tx
    assert world.mempool.fee(sent.tx) == sent.fee_sat
    assert feerate_of(sent.fee_sat, sent.tx.weight()) in range(RATE, RATE + 5)
    change = 200_000 - 120_000 - sent.fee_sat
    assert world.wallet.balance() == Balance(0, change, 0, 0)
    again = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    assert again.tx.inputs[0].outpoint.txid == sent.txid, "own change is spent before it confirms"
    wallet = await world.restart()
    assert wallet.balance() == Balance(0, change - 10_000 - again.fee_sat, 0, 0)
    await world.mine()
    assert wallet.balance() == Balance(change - 10_000 - again.fee_sat, 0, 0, 0)
    info = wallet.transaction(sent.txid)
    assert (info.amount_sat, info.fee_sat, info.confirmations, info.label) == (
        -120_000 - sent.fee_sat,
        sent.fee_sat,
        1,
        "rent",
    )
    assert info.tx.locktime == 1, "no earlier block may take it"


async def test_confirmed_coins_are_preferred(world: World) -> None:
    await world.receive(100_000)
    await world.wallet.send(STRANGER_ADDRESS, 50_000, RATE)
    await world.receive(60_000)
    confirmed = next(coin for coin in world.wallet.coins() if coin.value_sat == 60_000)
    funded = await world.wallet.create_tx([TxOut(40_000, STRANGER)], RATE)
    assert [coin.outpoint for coin in funded.coins if coin] == [confirmed.outpoint]


async def test_unconfirmed_money_of_others_is_shown_but_not_spent(world: World) -> None:
    script = await world.wallet.new_script()
    incoming = world.payment((70_000, script))
    world.store.commit_now(world.wallet.note(incoming, label="sweep"))
    assert world.wallet.balance() == Balance(0, 70_000, 0, 0)
    with pytest.raises(InsufficientFunds):
        await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    await world.mine(1, incoming)
    assert world.wallet.balance() == Balance(70_000, 0, 0, 0)
    assert world.wallet.transaction(incoming.txid()).label == "sweep"


async def test_send_everything(world: World) -> None:
    await world.receive(100_000, 50_000, 200)
    sent = await world.wallet.send(STRANGER_ADDRESS, None, RATE)
    assert world.wallet.balance().total_sat == 200, "what costs more than it is worth stays"
    assert sent.tx.outputs == (TxOut(150_000 - sent.fee_sat, STRANGER),)
    assert len(sent.tx.inputs) == 2


async def test_reserve_is_kept_back(world: World) -> None:
    await world.receive(100_000)
    world.wallet.keep_back_sat = 30_000
    with pytest.raises(InsufficientFunds, match="30,000 sat are kept back"):
        await world.wallet.send(STRANGER_ADDRESS, 80_000, RATE)
    most = world.wallet.max_amount_sat(RATE, len(STRANGER))
    with pytest.raises(InsufficientFunds):
        await world.wallet.create_tx([TxOut(most + 1, STRANGER)], RATE)
    funded = await world.wallet.create_tx([TxOut(most, STRANGER)], RATE)
    assert funded.tx.outputs[funded.change_vout or 0].value_sat == 30_000
    await world.wallet.release(funded.reservation)
    sent = await world.wallet.send(STRANGER_ADDRESS, None, RATE)
    assert world.wallet.balance() == Balance(0, 30_000, 0, 0)
    assert {txout.value_sat for txout in sent.tx.outputs} == {30_000, 70_000 - sent.fee_sat}
    await world.mine()
    await world.wallet.create_tx([TxOut(20_000, STRANGER)], RATE, use_reserve=True)


async def test_max_amount_is_exact(world: World) -> None:
    await world.receive(100_000, 40_000)
    most = world.wallet.max_amount_sat(RATE, 34)
    with pytest.raises(InsufficientFunds) as caught:
        await world.wallet.create_tx([TxOut(most + 1, b"\x00\x20" + bytes(32))], RATE)
    assert (caught.value.have_sat, caught.value.need_sat) == (140_000, most + 1)
    assert caught.value.need_sat + caught.value.fee_sat == 140_001
    funded = await world.wallet.create_tx([TxOut(most, b"\x00\x20" + bytes(32))], RATE)
    assert funded.fee_sat == 140_000 - most


@pytest.mark.parametrize(
    ("amount_sat", "feerate", "error", "sentence"),
    [
        (0, RATE, InvalidAmount, "must be positive"),
        (-5, RATE, InvalidAmount, "must be positive"),
        (10**16, RATE, InvalidAmount, "more than there will ever be"),
        (293, RATE, DustOutput, "293 sat to bcrt1q.* is dust: .* at least 294 sat"),
        (
            1_000_000,
            RATE,
            InsufficientFunds,
            "1,000,000 sat and a fee of [0-9]+ sat are needed, 50,000 sat can be spent",
        ),
        (1_000, 252, InvalidFeeRate, "at least 1.012 sat/vB"),
        (1_000, 3_000_000, InvalidFeeRate, "mistake"),
    ],
)
async def test_what_cannot_be_sent(
    world: World, amount_sat: int, feerate: int, error: type[Exception], sentence: str
) -> None:
    await world.receive(50_000)
    with pytest.raises(error, match=sentence):
        await world.wallet.send(STRANGER_ADDRESS, amount_sat, feerate)
    assert world.wallet.balance() == Balance(50_000, 0, 0, 0)
    assert not world.mempool.txs


async def test_wrong_addresses_are_refused(world: World) -> None:
    await world.receive(50_000)
    with pytest.raises(AddressError, match="mainnet; this is regtest"):
        await world.wallet.send("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu", 1_000, RATE)
    with pytest.raises(AddressError):
        await world.wallet.send(STRANGER_ADDRESS[:-1] + "q", 1_000, RATE)


async def test_refused_transactions_are_taken_back(world: World) -> None:
    await world.receive(50_000)
    world.mempool.refuse = BroadcastResult(BroadcastOutcome.REJECTED, "dust")
    with pytest.raises(BroadcastRejected, match="refuses the transaction: dust"):
        await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    assert world.wallet.balance() == Balance(50_000, 0, 0, 0)
    world.mempool.refuse = None
    await world.restart()
    sent = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    assert sent.broadcast is not None


async def test_sent_while_layer_1_is_away_goes_out_later(world: World) -> None:
    await world.receive(50_000)
    world.mempool.away = True
    sent = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    assert sent.broadcast is None
    world.mempool.away = False
    second = await world.wallet.send(STRANGER_ADDRESS, 5_000, RATE)
    assert second.broadcast is not None, "the parent was sent first"
    assert set(world.mempool.txs) == {sent.txid, second.txid}
    world.mempool.txs.clear()
    wallet = await world.restart()
    results = await wallet.rebroadcast()
    assert [results[txid].outcome for txid in (sent.txid, second.txid)] == [BroadcastOutcome.ACCEPTED] * 2
    assert [result.outcome for result in (await wallet.rebroadcast()).values()] == [BroadcastOutcome.ALREADY_KNOWN] * 2


async def test_reservations(world: World) -> None:
    await world.receive(50_000, 60_000)
    funded = await world.wallet.create_tx([TxOut(55_000, STRANGER)], 5 * RATE)
    assert world.wallet.balance() == Balance(50_000, 0, 0, 60_000)
    wallet = await world.restart()
    assert wallet.balance() == Balance(50_000, 0, 0, 60_000)
    assert wallet.reservations() == {funded.reservation: [funded.tx.inputs[0].outpoint]}
    with pytest.raises(InsufficientFunds):
        await wallet.create_tx([TxOut(55_000, STRANGER)], RATE)
    with pytest.raises(CoinUnavailable, match="reserved"):
        await wallet.create_tx([TxOut(5_000, STRANGER)], RATE, only=[funded.tx.inputs[0].outpoint])
    await wallet.release(funded.reservation)
    with pytest.raises(UnknownReservation):
        await wallet.release(funded.reservation)
    wallet = await world.restart()
    assert wallet.balance() == Balance(110_000, 0, 0, 0)


async def test_reservations_expire(world: World) -> None:
    await world.receive(50_000)
    await world.wallet.create_tx([TxOut(10_000, STRANGER)], RATE, reserve_seconds=60)
    assert world.wallet.balance().reserved_sat == 50_000
    world.now += 61
    assert world.wallet.balance() == Balance(50_000, 0, 0, 0)
    await world.wallet.create_tx([TxOut(10_000, STRANGER)], RATE)
    wallet = await world.restart()
    assert wallet.balance() == Balance(0, 0, 0, 50_000)


async def test_two_transactions_never_share_a_coin(world: World) -> None:
    await world.receive(*[20_000] * 6)
    funded = [await world.wallet.create_tx([TxOut(25_000, STRANGER)], RATE) for _ in range(3)]
    spent = [txin.outpoint for each in funded for txin in each.tx.inputs]
    assert len(spent) == len(set(spent)) == 6
    with pytest.raises(InsufficientFunds):
        await world.wallet.create_tx([TxOut(1_000, STRANGER)], RATE)


async def test_publish_and_forget(world: World) -> None:
    await world.receive(50_000)
    funded = await world.wallet.create_tx([TxOut(30_000, STRANGER)], RATE)
    world.mempool.refuse = BroadcastResult(BroadcastOutcome.REJECTED, "non-final", True)
    result = await world.wallet.publish(funded, label="channel")
    assert result is not None
    assert not result.ok
    assert world.wallet.reservations() == {}
    assert world.wallet.balance().confirmed_sat == 0
    world.store.commit_now(world.wallet.forget(funded.txid))
    assert world.wallet.balance() == Balance(50_000, 0, 0, 0)
    assert (await world.restart()).balance() == Balance(50_000, 0, 0, 0)
    with pytest.raises(UnknownTransaction):
        world.wallet.forget(bytes(32))


async def test_mined_before_it_was_recorded(world: World) -> None:
    await world.receive(50_000)
    funded = await world.wallet.create_tx([TxOut(30_000, STRANGER)], RATE)
    await world.mine(1, funded.tx)
    world.store.commit_now(world.wallet.record(funded, label="channel"))
    info = (await world.restart()).transaction(funded.txid)
    assert (info.confirmations, info.label, info.own, info.fee_sat) == (1, "channel", True, funded.fee_sat)
    assert world.wallet.balance() == Balance(20_000 - funded.fee_sat, 0, 0, 0)


async def test_reorganisation_undoes_and_redoes(world: World) -> None:
    (paid,) = await world.receive(50_000)
    await world.mine(3)
    sent = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    await world.mine()
    change = 40_000 - sent.fee_sat
    assert world.wallet.balance() == Balance(change, 0, 0, 0)
    await world.undo()
    assert world.wallet.balance() == Balance(0, change, 0, 0)
    await world.undo(4)
    assert world.wallet.height == 0
    assert world.wallet.balance() == Balance(0, change, 0, 0)
    assert {info.confirmations for info in world.wallet.transactions()} == {0}
    wallet = await world.restart()
    assert wallet.balance() == Balance(0, change, 0, 0)
    await world.mine(1, paid)
    await world.mine(1, sent.tx)
    assert wallet.balance() == Balance(change, 0, 0, 0)


async def test_reorganised_coinbase_and_what_was_built_on_it_vanish(world: World) -> None:
    script = await world.wallet.new_script()
    await world.mine(payout=(TxOut(1_000_000, script),))
    await world.mine(100)
    sent = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    block = world.chain.block(1)
    for _ in range(101):
        await world.undo()
    assert world.wallet.balance() == Balance(0, 0, 0, 0)
    assert (await world.restart()).balance().total_sat == 0
    world.chain.active.append(block.header.hash())
    await world.connect(1)
    assert world.wallet.balance().unconfirmed_sat == 1_000_000 - 10_000 - sent.fee_sat


async def test_a_double_spend_kills_what_was_built_on_it(world: World) -> None:
    """The same seed elsewhere spends a coin: our transaction and its child are void, until a reorg brings them back."""
    await world.receive(50_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    child = await world.wallet.send(STRANGER_ADDRESS, 5_000, RATE)
    elsewhere = world.keys.script(KeyPath(AddressKind.P2TR, CHANGE, 5))
    rival = Tx(2, (TxIn(sent.tx.inputs[0].outpoint),), (TxOut(45_000, elsewhere),), 0)
    await world.mine(1, rival)
    assert world.wallet.balance() == Balance(45_000, 0, 0, 0)
    assert {world.wallet.transaction(tx.txid).replaced_by for tx in (sent, child)} == {rival.txid()}
    with pytest.raises(CannotBump):
        await world.wallet.bump(sent.txid, 5_000)
    await world.undo()
    assert world.wallet.balance() == Balance(0, 45_000, 0, 0)
    await world.mine(1, sent.tx)
    assert world.wallet.transaction(rival.txid()).replaced_by == sent.txid
    assert world.wallet.transaction(child.txid).replaced_by is None
    assert (await world.restart()).balance() == Balance(0, 35_000 - sent.fee_sat - child.fee_sat, 0, 0)


async def test_blocks_out_of_step_are_refused(world: World) -> None:
    await world.mine(2)
    block = world.chain.block(2)
    event = BlockConnected(2, world.chain.active[2], block)
    assert world.wallet.process(event) == [], "the same block again changes nothing"
    with pytest.raises(OutOfStep):
        world.wallet.process(BlockConnected(4, bytes(32), block))
    with pytest.raises(OutOfStep):
        world.wallet.process(BlockDisconnected(1, world.chain.active[1], None))


async def test_another_seed_is_noticed(world: World) -> None:
    world.keys = World(Seed.create(bytes(32))).keys
    with pytest.raises(WrongSeed, match="belongs to another wallet"):
        await world.start()


class OldBlocks:
    """What a rescan asks layer 1 for."""

    def __init__(self, world: World) -> None:
        self._chain = world.chain

    async def get_block_hash(self, height: int) -> bytes | None:
        return self._chain.active[height] if height <= self._chain.height else None

    async def get_block(self, block_hash: bytes) -> object:
        return self._chain.known[block_hash][1]


async def test_rescan_finds_what_an_older_seed_owned() -> None:
    world = World()
    old = world.payment((40_000, world.keys.script(KeyPath(AddressKind.P2WPKH, EXTERNAL, 3))))
    world.chain.mine(1, old)
    world.chain.mine(4)
    wallet = await world.start(birthday_height=None)
    world.store.commit_now(wallet.process(Synced(5, world.chain.active[5])))
    assert wallet.balance().total_sat == 0

    assert [height async for height in wallet.rescan(cast(ChainSource, OldBlocks(world)), 1)] == [5]
    assert wallet.balance() == Balance(40_000, 0, 0, 0)
    assert (await world.restart()).coins()[0].confirmations == 5


async def test_a_rescan_with_a_higher_gap_limit_finds_what_lay_beyond() -> None:
    world = World()
    far = world.payment((40_000, world.keys.script(KeyPath(AddressKind.P2TR, EXTERNAL, 45))))
    await world.start()
    await world.mine(1, far)
    await world.mine(150)
    assert world.wallet.balance().total_sat == 0
    world.options["gap_limit"] = 50
    assert (await world.restart()).balance().total_sat == 0
    chain = cast(ChainSource, OldBlocks(world))
    assert [height async for height in world.wallet.rescan(chain, 0)] == [99, 151]
    assert world.wallet.balance().confirmed_sat == 40_000
    assert (await world.restart()).balance().confirmed_sat == 40_000


async def test_signatures_of_every_kind(world: World) -> None:
    await world.receive(50_000, 60_000)
    await world.receive(70_000, 80_000, kind="p2wpkh")
    funded = await world.wallet.create_tx([TxOut(255_000, STRANGER)], RATE)
    assert len(funded.tx.inputs) == 4
    assert all(script_ok(funded.tx, place, funded.spent) for place in range(4))
    assert feerate_of(funded.fee_sat, funded.tx.weight()) in range(RATE, RATE + 5)
    unsigned = funded.tx.replace(inputs=tuple(txin._replace(witness=()) for txin in funded.tx.inputs))
    assert world.wallet.sign(unsigned, funded.spent) == funded.tx
    assert funded.tx.outputs[funded.vout_of(STRANGER)].value_sat == 255_000


async def test_memory_and_store_agree_after_random_events() -> None:
    """Whatever happened, a restarted wallet is the same wallet."""
    for seed in range(6):
        world = World()
        await world.start()
        rng = random.Random(seed)
        await world.receive(*[rng.randrange(5_000, 500_000) for _ in range(4)])
        for _ in range(25):
            action = rng.randrange(7)
            if action == 0:
                await world.receive(rng.randrange(5_000, 500_000))
            elif action == 1 and world.chain.height > 3:
                await world.undo(rng.randrange(1, 3))
            elif action == 2:
                await world.mine()
            elif action == 3:
                unconfirmed = [info for info in world.wallet.transactions() if not info.confirmations and info.own]
                if unconfirmed:
                    try:
                        await world.wallet.bump(rng.choice(unconfirmed).txid, rng.randrange(1_000, 5_000))
                    except (CannotBump, InsufficientFunds, BroadcastRejected):
                        pass
            else:
                try:
                    await world.wallet.send(STRANGER_ADDRESS, rng.randrange(1_000, 200_000), RATE)
                except (InsufficientFunds, BroadcastRejected):
                    pass
            before = (world.wallet.balance(), world.wallet.coins(), world.wallet.transactions(), world.wallet.tip)
            wallet = await world.restart()
            assert (wallet.balance(), wallet.coins(), wallet.transactions(), wallet.tip) == before
            _check_coins(wallet)


def _check_coins(wallet: Wallet) -> None:
    """The sum of all that counts is what the coins come to."""
    infos = [info for info in wallet.transactions() if info.height is not None or info.replaced_by is None]
    assert sum(info.amount_sat for info in infos) == wallet.balance().total_sat
    spent: set[OutPoint] = set()
    for info in infos:
        for txin in info.tx.inputs:
            assert txin.outpoint not in spent
            spent.add(txin.outpoint)
    assert not spent & {coin.outpoint for coin in wallet.coins()}


async def test_what_is_not_made_uses_up_no_script(world: World) -> None:
    """A seed alone brings back what was paid to the scripts that are looked for: a few beyond the last used one. What
    cannot be paid for is tried again and again, at every block."""
    await world.receive(100_000)
    request = Request((TxOut(50_000, STRANGER),), RATE)
    for _ in range(world.options["gap_limit"] + 1):
        with pytest.raises(FeeTooHigh):
            world.wallet.plan_tx(request, max_fee_sat=1)
    sent = await world.wallet.send(STRANGER_ADDRESS, 50_000, RATE)
    await world.mine(1, sent.tx)
    restored = World()
    restored.chain = world.chain
    await restored.start()
    for height in range(1, world.chain.height + 1):
        await restored.connect(height)
    assert restored.wallet.balance() == world.wallet.balance()
