"""The wallet: coins followed along the chain, addresses, balances, sending and bumping.

Memory changes at once; what must be persisted comes back as writes. Methods that are coroutines commit their writes
through the store themselves; `process`, `plan_tx`, `record`, `note` and `forget` return them, for a caller that commits
them together with its own. Writes must reach the database in the order in which they were handed out: submit them to
the writer before anything else in the event loop runs (before the next `await` that is not the commit).
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Literal

import structlog

from wallet import psbt
from wallet import store as rows
from wallet.bitcoin import OutPoint, Tx, TxOut
from wallet.bitcoin.address import address_of, script_of
from wallet.chain import (
    REORG_LIMIT_BLOCKS,
    BlockConnected,
    BlockDisconnected,
    BlockRef,
    Broadcaster,
    BroadcastResult,
    ChainEvent,
    ChainSource,
    ChainUnavailable,
    Synced,
)
from wallet.changes import Changes
from wallet.coins import GAP_LIMIT, Coin, Ledger, ScriptBook, WalletTx
from wallet.errors import BroadcastRejected, CannotBump, FeeTooHigh, OutOfStep, WrongSeed
from wallet.funding import Draft, Request
from wallet.keys import EXTERNAL, AddressKind, KeyPath, Keys
from wallet.reservations import Reservations
from wallet.spending import FundedTx, Spender
from wallet.store import Snapshot, WalletStore, Write
from wallet.views import Balance, CoinInfo, SentTx, TxInfo

_log = structlog.get_logger(__name__)
_BLOCKS_KEPT = 2 * REORG_LIMIT_BLOCKS + 2
_RESCAN_BATCH_BLOCKS = 100
Kind = AddressKind | Literal["p2tr", "p2wpkh"]


class Wallet:
    """One seed's coins on one network. Made by `Wallet.open`. Used from one event loop."""

    def __init__(
        self,
        keys: Keys,
        store: WalletStore,
        snapshot: Snapshot,
        *,
        broadcaster: Broadcaster | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        gap_limit: int = GAP_LIMIT,
        keep_back_sat: int = 0,
    ) -> None:
        self.keys = keys
        self.network = keys.network
        self.broadcaster = broadcaster
        self.keep_back_sat = keep_back_sat
        """What sending must leave in the wallet, for the fees of channels that have to be closed in a hurry (sat)."""
        self._store = store
        self._clock = clock
        self._ledger = Ledger(ScriptBook(keys.script, gap_limit))
        self._ledger.book.restore(snapshot.scripts, snapshot.cursors)
        self._ledger.restore(snapshot.txs)
        self._reservations = Reservations()
        self._reservations.restore(snapshot.reserved)
        self._changes = Changes(self._ledger, snapshot)
        self._blocks: list[BlockRef] = list(snapshot.blocks)
        self._ledger.settle(self.height)
        self._meta = dict(snapshot.meta)
        self._spender = Spender(
            keys, self._ledger, self._reservations, keys.network, rng or random.SystemRandom(), lambda: self.height
        )

    @classmethod
    async def open(
        cls,
        keys: Keys,
        store: WalletStore,
        *,
        birthday_height: int | None = None,
        broadcaster: Broadcaster | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        gap_limit: int = GAP_LIMIT,
        keep_back_sat: int = 0,
    ) -> Wallet:
        """Read the wallet from its store, or begin a new one there.

        `birthday_height` counts for a new one only: the first block that may concern the seed (0 for a restored seed
        of unknown age), or None if the seed is new too: then only blocks from now on matter. Raises WrongSeed.
        """
        wallet = cls(
            keys,
            store,
            store.load(),
            broadcaster=broadcaster,
            clock=clock,
            rng=rng,
            gap_limit=gap_limit,
            keep_back_sat=keep_back_sat,
        )
        await store.commit(wallet._settle_in(birthday_height))
        return wallet

    def _settle_in(self, birthday_height: int | None) -> list[Write]:
        """Check that the store is this seed's, or make it so."""
        writes: list[Write] = []
        mine = {"fingerprint": self.keys.fingerprint.hex(), "network": self.network.name}
        for name, value in mine.items():
            stored = self._meta.get(name)
            if stored is None:
                writes.append(rows.insert_meta(name, value))
            elif stored != value:
                raise WrongSeed(
                    f"this database belongs to another wallet ({name} {stored}, the seed given has {value}): "
                    "start with the seed that belongs to it, or with an empty data directory"
                )
        if "fingerprint" not in self._meta and birthday_height is not None:
            writes.append(rows.insert_meta("birthday_height", str(birthday_height)))
            self._meta["birthday_height"] = str(birthday_height)
        self._meta.update(mine)
        self._ledger.book.fill()
        return writes + self._changes.collect()

    # Following the chain

    def follow_from(self) -> tuple[list[BlockRef] | None, int | None]:
        """What to give to `ChainSource.follow`: (recent blocks, birthday height)."""
        if self._blocks:
            return list(self._blocks), None
        birthday = self._meta.get("birthday_height")
        return None, None if birthday is None else int(birthday)

    def first_height(self) -> int | None:
        """The first block that may concern the seed, as far as is known: for who restores it. None if the seed is new,
        and layer 1 was never there."""
        heights = [wallet_tx.height for wallet_tx in self._ledger.txs.values() if wallet_tx.height is not None]
        if (birthday := self._meta.get("birthday_height")) is not None:
            heights.append(int(birthday))
        elif self._blocks:
            heights.append(self.height)
        return min(heights, default=None)

    @property
    def tip(self) -> BlockRef | None:
        """The last processed block."""
        return self._blocks[-1] if self._blocks else None

    @property
    def height(self) -> int:
        """The last processed block's height, 0 before the first."""
        return self._blocks[-1].height if self._blocks else 0

    def process(self, event: ChainEvent) -> list[Write]:
        """Take in a chain event; commit the writes before the next one. A block given twice changes nothing.

        Raises OutOfStep for a block that does not continue the chain.
        """
        match event:
            case BlockConnected():
                return self._connected(event)
            case BlockDisconnected():
                return self._disconnected(event)
            case Synced() if not self._blocks:
                return self._push(BlockRef(event.height, event.hash))
            case _:
                return []

    def _connected(self, event: BlockConnected) -> list[Write]:
        ref, tip = BlockRef(event.height, event.hash), self.tip
        if ref == tip:
            return []
        if tip is not None and (event.height != tip.height + 1 or event.block.header.prev_hash != tip.hash):
            raise OutOfStep(f"block {ref} does not follow block {tip}, the last one that the wallet processed")
        self._ledger.connect(event.height, event.hash, event.block)
        if event.height % 100 == 0:
            self._ledger.settle(event.height)
        return self._push(ref) + self._changes.collect()

    def _disconnected(self, event: BlockDisconnected) -> list[Write]:
        ref, tip = BlockRef(event.height, event.hash), self.tip
        if ref != tip:
            raise OutOfStep(f"block {ref} left the chain, but the last one that the wallet processed is {tip}")
        self._ledger.disconnect(event.height, event.hash)
        self._blocks.pop()
        writes = [rows.delete_block(event.height)]
        if not self._blocks and event.header is not None:
            writes += self._push(BlockRef(event.height - 1, event.header.prev_hash))
        return writes + self._changes.collect()

    def _push(self, ref: BlockRef) -> list[Write]:
        self._blocks.append(ref)
        writes = [rows.insert_block(ref)]
        if len(self._blocks) > 2 * _BLOCKS_KEPT:
            del self._blocks[:-_BLOCKS_KEPT]
            writes.append(rows.delete_blocks_below(self._blocks[0].height))
        return writes

    async def rescan(self, source: ChainSource, from_height: int) -> AsyncIterator[int]:
        """Look through processed blocks again, for a seed that is older than it was thought, or a higher gap limit.
        Gives the height of the last block that was looked at, now and then and at the end; what was in it is kept.

        Raises ChainError. Interrupted, it has changed nothing but what was found so far.
        """
        height = from_height
        while height <= self.height:
            block_hash = await source.get_block_hash(height)
            if block_hash is None:
                break
            block = await source.get_block(block_hash)
            if any(ref.height == height and ref.hash != block_hash for ref in self._blocks):
                break  # a reorganisation is under way: these blocks come by themselves
            if height <= self.height:
                self._ledger.connect(height, block_hash, block)
            height += 1
            if (height - from_height) % _RESCAN_BATCH_BLOCKS == 0:
                await self._store.commit(self._changes.collect())
                yield height - 1
        await self._store.commit(self._changes.collect())
        yield height - 1

    # Addresses, and what is owned

    async def new_script(self, kind: Kind = AddressKind.P2TR) -> bytes:
        """A fresh output script of this wallet, never given out before."""
        path = self._ledger.book.take(AddressKind(kind), EXTERNAL)
        await self._store.commit(self._changes.collect())
        return self.keys.script(path)

    async def new_address(self, kind: Kind = AddressKind.P2TR) -> str:
        """A fresh address of this wallet, never given out before."""
        address = address_of(await self.new_script(kind), self.network)
        assert address is not None
        return address

    def is_ours(self, script_pubkey: bytes) -> bool:
        """Whether an output script is this wallet's."""
        return self._ledger.book.path_of(script_pubkey) is not None

    def balance(self) -> Balance:
        """See Balance."""
        self._expire()
        confirmed = unconfirmed = immature = reserved = 0
        for outpoint, coin in self._ledger.coins().items():
            if self._reservations.holds(outpoint):
                reserved += coin.value_sat
            elif coin.height is None:
                unconfirmed += coin.value_sat
            elif not coin.mature(self.height):
                immature += coin.value_sat
            else:
                confirmed += coin.value_sat
        return Balance(confirmed, unconfirmed, immature, reserved)

    def coins(self) -> list[CoinInfo]:
        """All unspent outputs, the oldest first."""
        self._expire()
        infos = [self._coin_info(coin) for coin in self._ledger.coins().values()]
        return sorted(infos, key=lambda info: (-info.confirmations, info.outpoint))

    def _coin_info(self, coin: Coin) -> CoinInfo:
        return CoinInfo(
            coin.outpoint,
            coin.value_sat,
            address_of(coin.txout.script_pubkey, self.network) or "",
            coin.path.kind,
            coin.confirmations(self.height),
            coin.mature(self.height),
            self._reservations.holds(coin.outpoint),
        )

    def transactions(self) -> list[TxInfo]:
        """All transactions that concern the wallet, the newest first; without those that others took the place of."""
        infos = [self._tx_info(wallet_tx) for wallet_tx in self._ledger.txs.values() if wallet_tx.live]
        return sorted(infos, key=lambda info: (info.confirmations, -info.time_seconds, info.txid))

    def transaction(self, txid: bytes) -> TxInfo:
        """One transaction. Raises UnknownTransaction."""
        return self._tx_info(self._spender.find(txid))

    def _tx_info(self, wallet_tx: WalletTx) -> TxInfo:
        ledger = self._ledger
        amount = sum(txout.value_sat for txout in wallet_tx.tx.outputs if self.is_ours(txout.script_pubkey))
        for txin in wallet_tx.tx.inputs:
            txout = ledger.txout(txin.outpoint) if ledger.owner(txin.outpoint) else None
            amount -= txout.value_sat if txout else 0
        height = wallet_tx.height
        return TxInfo(
            wallet_tx.txid,
            wallet_tx.tx,
            amount,
            wallet_tx.fee_sat,
            height,
            0 if height is None else self.height - height + 1,
            wallet_tx.time_seconds,
            wallet_tx.own,
            wallet_tx.replaced_by,
            wallet_tx.label,
        )

    # Making transactions

    def _expire(self) -> None:
        """Free reserved coins that are past their time; the writes go with the next ones."""
        self._changes.add(self._reservations.expire(self._clock()))

    def max_amount_sat(self, feerate_sat_per_kw: int, script_length: int = 34, *, min_confirmations: int = 0) -> int:
        """The most (sat) that one output could get at this fee rate, with a script of so many bytes (34 for P2WSH)."""
        self._expire()
        request = Request((), feerate_sat_per_kw, keep_back_sat=self.keep_back_sat)
        return self._spender.max_amount_sat(request, script_length, min_confirmations)

    def plan_tx(
        self,
        request: Request,
        *,
        min_confirmations: int = 0,
        only: Sequence[OutPoint] | None = None,
        reserve_seconds: float | None = None,
        sign: bool = True,
        use_reserve: bool = False,
        max_fee_sat: int | None = None,
        required: Sequence[OutPoint] = (),
    ) -> tuple[FundedTx, list[Write]]:
        """`create_tx` without the commit; it spends the `required` coins in any case. Raises FeeTooHigh, too, before
        anything is reserved."""
        self._expire()
        if not use_reserve:
            request = replace(request, keep_back_sat=max(request.keep_back_sat, self.keep_back_sat))
        if not request.locktime:
            request = replace(request, locktime=self.height)  # against fee sniping, as Bitcoin Core does
        coins = None if only is None else [self._spender.coin(outpoint) for outpoint in only]
        request = replace(request, required=(*request.required, *map(self._spender.coin, required)))
        draft = self._spender.draft(request, min_confirmations=min_confirmations, only=coins)
        if max_fee_sat is not None and draft.fee_sat > max_fee_sat:
            raise FeeTooHigh(draft.fee_sat, max_fee_sat)
        return self._reserve(draft, reserve_seconds, sign)

    def _reserve(self, draft: Draft, reserve_seconds: float | None, sign: bool) -> tuple[FundedTx, list[Write]]:
        if sign:
            draft = self._spender.signed(draft)
        expires = None if reserve_seconds is None else int(self._clock() + reserve_seconds)
        for path in [self._ledger.book.path_of(txout.script_pubkey) for txout in draft.tx.outputs]:
            if path is not None:
                self._ledger.book.note_used(path)
        own = [coin.outpoint for coin in draft.coins if coin is not None]
        reservation, writes = self._reservations.add(own, expires)
        self._changes.add(writes)
        funded = FundedTx(
            draft.tx,
            draft.tx.txid(),
            draft.coins,
            draft.spent,
            draft.fee_sat,
            draft.change_vout,
            draft.elastic_vout,
            reservation,
        )
        return funded, self._changes.collect()

    async def create_tx(
        self,
        outputs: Sequence[TxOut],
        feerate_sat_per_kw: int,
        *,
        drain_to: bytes | None = None,
        min_confirmations: int = 0,
        only: Sequence[OutPoint] | None = None,
        reserve_seconds: float | None = None,
        sign: bool = True,
        use_reserve: bool = False,
    ) -> FundedTx:
        """A signed transaction that pays the outputs, its coins reserved (for ever, or so long); not broadcast.

        `drain_to` gets all that is left instead of change. `only` names the coins to choose from. `use_reserve`
        allows to touch `keep_back_sat`. For foreign inputs, ancestors to pay for and the like, see `plan_tx`.
        Raises InsufficientFunds, DustOutput, InvalidAmount, InvalidFeeRate, TransactionTooLarge, CoinUnavailable.
        """
        funded, writes = self.plan_tx(
            Request(tuple(outputs), feerate_sat_per_kw, drain_to=drain_to),
            min_confirmations=min_confirmations,
            only=only,
            reserve_seconds=reserve_seconds,
            sign=sign,
            use_reserve=use_reserve,
        )
        await self._store.commit(writes)
        return funded

    def sign(self, tx: Tx, spent: Sequence[TxOut]) -> Tx:
        """Sign the inputs that spend outputs of this wallet; `spent` are all inputs' outputs, in order."""
        return self._spender.sign(tx, spent)

    def to_psbt(self, funded: FundedTx) -> str:
        """A transaction made with `sign=False`, as base64 PSBT for a signer elsewhere that has this wallet's keys."""
        inputs = []
        for txin, coin, txout in zip(funded.tx.inputs, funded.coins, funded.spent, strict=True):
            made_by = self._ledger.txs.get(txin.outpoint.txid)
            inputs.append(psbt.InputInfo(txout, coin.path if coin else None, made_by.tx if made_by else None))
        paths = [self._ledger.book.path_of(txout.script_pubkey) for txout in funded.tx.outputs]
        return psbt.encode(funded.tx, inputs, paths, self.keys)

    def sign_psbt(self, text: str) -> tuple[str, list[int]]:
        """Sign the inputs of a PSBT that are this wallet's: (base64 PSBT, which inputs). Raises PsbtError."""

        def known(outpoint: OutPoint) -> tuple[TxOut, KeyPath] | None:
            path, txout = self._ledger.owner(outpoint), self._ledger.txout(outpoint)
            return None if path is None or txout is None else (txout, path)

        return psbt.sign(psbt.decode(text), self.keys, known)

    async def release(self, reservation: int) -> None:
        """Let reserved coins go. Raises UnknownReservation."""
        self._changes.add(self._reservations.release(reservation))
        await self._store.commit(self._changes.collect())

    def unreserve(self, reservation: int) -> list[Write]:
        """`release` without the commit; nothing if there is no such reservation any more."""
        self._changes.add(self._reservations.release_if_held(reservation))
        return self._changes.collect()

    def hold_again(self, reservation: int, outpoints: Sequence[OutPoint], writes: Sequence[Write]) -> None:
        """Undo `unreserve`, whose `writes` were not committed: what used the coins goes on using them. What else was
        among the writes goes with the next ones."""
        self._reservations.hold_again(reservation, outpoints)
        self._changes.add(write for write in writes if write != rows.delete_reservation(reservation))

    def reservations(self) -> dict[int, list[OutPoint]]:
        """Which coins are reserved, by number."""
        self._expire()
        return self._reservations.all()

    def record(self, funded: FundedTx, *, tx: Tx | None = None, label: str = "", fixed: bool = True) -> list[Write]:
        """From now on the transaction counts: its coins are spent, its change is there, it is rebroadcast until mined.

        `tx` is its complete form if others had inputs to sign. `fixed`: others build on its id (a channel's funding),
        so bumping it makes a child instead of another transaction. Commit the writes, then broadcast.
        """
        complete = tx or funded.tx
        assert complete.txid() == funded.txid
        self._ledger.add_unconfirmed(
            WalletTx(
                funded.txid,
                complete,
                None,
                None,
                int(self._clock()),
                funded.fee_sat,
                own=True,
                fixed=fixed,
                elastic_vout=funded.elastic_vout,
                label=label,
            )
        )
        self._changes.add(self._reservations.release_if_held(funded.reservation))
        return self._changes.collect()

    def note(self, tx: Tx, *, fee_sat: int | None = None, own: bool = False, label: str = "") -> list[Write]:
        """An unconfirmed transaction that others made, or that the node made without the wallet's coins, and that pays
        the wallet (a closing transaction, a sweep). `own`: rebroadcast it until it is mined.

        One that spends a coin of the wallet's is neither, and is not taken in: others may say that they spend any coin.
        """
        if any(self._ledger.owner(outpoint) is not None for outpoint in tx.spends()):
            return []
        now = int(self._clock())
        wallet_tx = WalletTx(tx.txid(), tx, None, None, now, fee_sat, own=own, fixed=True, label=label)
        self._ledger.add_unconfirmed(wallet_tx)
        return self._changes.collect()

    def forget(self, txid: bytes) -> list[Write]:
        """Give up an unconfirmed transaction that can no longer be mined or was never sent; its coins are free again.

        Raises UnknownTransaction, and CannotBump if it is in the chain.
        """
        if self._spender.find(txid).height is not None:
            raise CannotBump(f"{txid[::-1].hex()} is in the chain: it cannot be given up")
        self._ledger.abandon(txid)
        return self._changes.collect()

    # Sending

    async def send(self, address: str, amount_sat: int | None, feerate_sat_per_kw: int, *, label: str = "") -> SentTx:
        """Pay an address, or with None send it everything (but `keep_back_sat`).

        Raises AddressError, BroadcastRejected, and what `create_tx` raises.
        """
        script = script_of(address, self.network)
        request = Request((), feerate_sat_per_kw, drain_to=script)
        if amount_sat is not None:
            request = Request((TxOut(amount_sat, script),), feerate_sat_per_kw)
        funded, writes = self.plan_tx(request)
        writes += self.record(funded, label=label, fixed=False)
        await self._store.commit(writes)
        return SentTx(funded.txid, funded.tx, funded.fee_sat, await self.offer(funded.txid))

    async def publish(self, funded: FundedTx, *, label: str = "", fixed: bool = True) -> BroadcastResult | None:
        """Record and broadcast. None if layer 1 is away: then it is sent by `rebroadcast`. A rejection is returned and
        changes nothing: `forget` it to have the coins back."""
        await self._store.commit(self.record(funded, label=label, fixed=fixed))
        return await self._offer([funded.tx])

    async def offer(self, txid: bytes) -> BroadcastResult | None:
        """Broadcast a recorded transaction, what it builds on first if that is missing; None if layer 1 is away.

        Raises BroadcastRejected if it is refused: then it is taken back, and its coins are free again.
        """
        return await self._offer_or_undo([self._spender.find(txid).tx], None)

    async def bump(self, txid: bytes, feerate_sat_per_kw: int) -> SentTx:
        """Raise an unconfirmed transaction's fee rate to a target: by replacing it if this wallet made it and nothing
        builds on it, else by a child. Asking again for the same rate changes nothing.

        Raises UnknownTransaction, CannotBump, BroadcastRejected, InsufficientFunds, InvalidFeeRate.
        """
        self._expire()
        wallet_tx = self._spender.latest(txid)
        if wallet_tx.height is not None:
            raise CannotBump(f"{wallet_tx.tx.txid_hex} is in the chain already")
        if wallet_tx.replaced_by is not None:
            raise CannotBump(f"{wallet_tx.tx.txid_hex} was given up, or something else spent its coins")
        if self._lifted_to(wallet_tx, feerate_sat_per_kw):
            fee_sat = self._spender.known_fee(wallet_tx)
            return SentTx(wallet_tx.txid, wallet_tx.tx, fee_sat, None, "none")
        replaced = None
        if self._spender.can_replace(wallet_tx) is None:
            draft = self._spender.replace_by_fee(wallet_tx, feerate_sat_per_kw, self.keep_back_sat)
            replaced = wallet_tx
        else:
            draft = self._spender.child_pays(wallet_tx, feerate_sat_per_kw, self.keep_back_sat)
            taken = {coin.outpoint for coin in draft.coins if coin is not None}
            children = self._ledger.live_children(wallet_tx.txid)
            replaced = next((c for c in children if taken & {txin.outpoint for txin in c.tx.inputs}), None)
        funded, writes = self._reserve(draft, None, True)
        writes += self.record(funded, label=wallet_tx.label, fixed=False)
        await self._store.commit(writes)
        is_child = replaced is not wallet_tx
        offered = [wallet_tx.tx, funded.tx] if is_child else [funded.tx]
        result = await self._offer_or_undo(offered, replaced)
        return SentTx(funded.txid, funded.tx, funded.fee_sat, result, "cpfp" if is_child else "rbf")

    def _lifted_to(self, wallet_tx: WalletTx, feerate_sat_per_kw: int) -> bool:
        """Whether the transaction, or it with a child of ours, pays the rate already."""
        if self._spender.feerate(wallet_tx) >= feerate_sat_per_kw:
            return True
        for child in self._ledger.live_children(wallet_tx.txid):
            family = self._spender.unconfirmed_ancestry(child)
            fees = sum(self._spender.known_fee(tx) for tx in family)
            if fees * 1000 >= feerate_sat_per_kw * sum(tx.tx.weight() for tx in family):
                return True
        return False

    async def _offer_or_undo(self, txs: list[Tx], replaced: WalletTx | None) -> BroadcastResult | None:
        """Broadcast the last transaction (with what it lifts). If it is refused, all is as before."""
        result = await self._offer(txs)
        if result is None or result.ok:
            return result
        txid = txs[-1].txid()
        if self._ledger.txs[txid].height is not None:
            return result  # mined while we asked
        self._ledger.abandon(txid)
        if replaced is not None and self._ledger.txs[replaced.txid].height is None:
            self._ledger.update(replace(self._ledger.txs[replaced.txid], replaced_by=None))
        await self._store.commit(self._changes.collect())
        raise BroadcastRejected(f"the network refuses the transaction: {result.reason}")

    async def _offer(self, txs: list[Tx]) -> BroadcastResult | None:
        """Broadcast the last transaction; if that fails, what it builds on first, and then both together."""
        if self.broadcaster is None:
            return None
        try:
            result = await self.broadcaster.broadcast(txs[-1])
            if not result.ok and result.retriable:
                ancestry = self._spender.unconfirmed_ancestry(self._ledger.txs[txs[-1].txid()])[1:]
                for ancestor in reversed(ancestry):
                    await self.broadcaster.broadcast(ancestor.tx)
                if len(txs) > 1:
                    result = (await self.broadcaster.broadcast_package(txs))[-1]
                elif ancestry:
                    result = await self.broadcaster.broadcast(txs[-1])
        except ChainUnavailable as error:
            _log.warning("layer 1 is away: the transaction is sent when it is back", reason=str(error))
            return None
        return result

    async def rebroadcast(self) -> dict[bytes, BroadcastResult]:
        """Offer our unconfirmed transactions to layer 1 again: at start, and when it was away. Raises ChainUnavailable.

        What is refused stays: a low fee may do later. A parent too cheap by itself is offered with its child.
        """
        assert self.broadcaster is not None
        waiting = list(self._ledger.unconfirmed())
        await self._store.commit(())  # what was recorded just now is durable before anybody hears of it
        results: dict[bytes, BroadcastResult] = {}
        for wallet_tx in waiting:
            if not wallet_tx.own or (wallet_tx.txid in results and results[wallet_tx.txid].ok):
                continue
            result = results[wallet_tx.txid] = await self.broadcaster.broadcast(wallet_tx.tx)
            child = next((c for c in self._ledger.live_children(wallet_tx.txid) if c.height is None), None)
            if not result.ok and child is not None:
                pair = await self.broadcaster.broadcast_package([wallet_tx.tx, child.tx])
                results[wallet_tx.txid], results[child.txid] = pair
            if not results[wallet_tx.txid].ok:
                _log.warning("a transaction is refused", txid=wallet_tx.tx.txid_hex, reason=result.reason)
        return results
