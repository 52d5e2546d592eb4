"""The wallet in the node: funding and closing scripts for channels, and the operator's own sending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine
from typing import Any, Literal

import structlog

from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.node import openings
from channeld.node.bus import EventBus
from channeld.node.channels import Driver
from channeld.node.feerates import FeeRates
from channeld.node.idempotency import Idempotency, Mark
from channeld.node.interface import CoinView, ErrorKind, NodeError, RescanView, TransactionView
from channeld.node.wallet_store import to_rows
from channeld.storage import Store, StoreFailed, Write
from wallet import errors as we
from wallet.bitcoin import Tx, TxOut
from wallet.bitcoin.address import AddressError, script_of
from wallet.chain import BroadcastResult, ChainError, ChainSource, ChainUnavailable
from wallet.funding import Request
from wallet.keys import AddressKind
from wallet.spending import FundedTx
from wallet.views import TxInfo
from wallet.wallet import Wallet

log = structlog.get_logger(__name__)

_KINDS: tuple[tuple[type[Exception], ErrorKind], ...] = (
    (we.InsufficientFunds, "resource_exhausted"),
    (we.TransactionTooLarge, "resource_exhausted"),
    (we.UnknownTransaction, "not_found"),
    (we.UnknownReservation, "not_found"),
    (we.CannotBump, "failed_precondition"),
    (we.CoinUnavailable, "failed_precondition"),
    (we.BroadcastRejected, "failed_precondition"),
    (we.WalletError, "invalid_argument"),
    (AddressError, "invalid_argument"),
)
WALLET_ERRORS = (we.WalletError, AddressError)


def node_error(error: Exception) -> NodeError:
    """A wallet's error for the API."""
    kind = next(kind for cls, kind in _KINDS if isinstance(error, cls))
    return NodeError(kind, str(error))


class Coins:
    """What channels and the operator want of the wallet."""

    def __init__(self, wallet: Wallet, store: Store, source: ChainSource, feerates: FeeRates, bus: EventBus) -> None:
        self._wallet = wallet
        self._store = store
        self._source = source
        self._feerates = feerates
        self._bus = bus
        self._planned: dict[bytes, FundedTx] = {}
        self._shared_scripts: dict[bool, bytes] = {}
        self._rescanning = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def release_leftovers(self, keep: Collection[int] = ()) -> None:
        """At start no channel is being funded: whatever a crash left reserved is free, but for the reservations in
        `keep`."""
        for reservation in list(self._wallet.reservations()):
            if reservation not in keep:
                await self._wallet.release(reservation)

    # --- Funder

    def need_funding(self, driver: Driver, need: fx.NeedFunding) -> None:
        """Build a transaction, then post FundingTxReady or FundingFailed."""
        self._start(self._fund(driver, need))

    async def _fund(self, driver: Driver, need: fx.NeedFunding) -> None:
        request = Request((TxOut(need.amount_sat, need.script_pubkey),), need.feerate_per_kw)
        try:
            funded, writes = self._wallet.plan_tx(request)
        except we.WalletError as error:
            driver.post(ev.FundingFailed(str(error)))
            return
        except Exception:
            driver.post(ev.FundingFailed("the funding transaction could not be made: an internal error"))
            raise
        self._planned[funded.txid] = funded
        await self._store.commit(to_rows(writes))
        driver.post(ev.FundingTxReady(funded.tx, funded.vout_of(need.script_pubkey)))

    def release_funding(self, txid: bytes) -> None:
        """A funding transaction will never be used."""
        funded = self._planned.pop(txid, None)
        if funded is not None:
            self._start(self._release(funded))

    async def _release(self, funded: FundedTx) -> None:
        try:
            await self._wallet.release(funded.reservation)
        except we.UnknownReservation:
            log.debug("funding was released before", txid=funded.txid[::-1].hex())

    def need_script(self, driver: Driver, any_segwit: bool) -> None:
        """Post CloseChannel with a fresh script."""
        self._start(self._give_script(driver, any_segwit))

    async def _give_script(self, driver: Driver, any_segwit: bool) -> None:
        driver.post(ev.CloseChannel(await self._script_for(driver, any_segwit), 0))

    async def _script_for(self, driver: Driver, any_segwit: bool) -> bytes:
        """Unproven channels share one, for nothing is paid to it as a rule: what strangers have us give out must not
        leave the operator's next address beyond those that a seed brings back."""
        if not openings.is_unproven(driver.state):
            return await self.new_script(any_segwit)
        if any_segwit not in self._shared_scripts:
            self._shared_scripts[any_segwit] = await self.new_script(any_segwit)
        return self._shared_scripts[any_segwit]

    async def new_script(self, any_segwit: bool) -> bytes:
        """A fresh output script; P2WPKH unless the peer allows any segwit version."""
        return await self._wallet.new_script(AddressKind.P2TR if any_segwit else AddressKind.P2WPKH)

    def broadcasting(self, tx: Tx, label: str, is_unproven: bool) -> list[Write]:
        """A channel's transaction is about to be published: the wallet's rows about it. Of a channel that is unproven
        (`openings.is_unproven`) nothing counts before it is in a block."""
        funded = self._planned.pop(tx.txid(), None)
        if funded is not None:
            return to_rows(self._wallet.record(funded, label=label, fixed=True))
        if not is_unproven and any(self._wallet.is_ours(txout.script_pubkey) for txout in tx.outputs):
            return to_rows(self._wallet.note(tx, label=label))
        return []

    def given_up(self, txid: bytes) -> list[Write]:
        """A channel is over: what one of its transactions would have paid us, if it is in no block, will not come."""
        try:
            info = self._wallet.transaction(txid)
        except we.UnknownTransaction:
            return []
        return [] if info.own or info.height is not None else to_rows(self._wallet.forget(txid))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StoreFailed):  # of which the node has heard
            log.critical("the wallet's part of a channel failed", exc_info=error)

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the operator

    def check_affordable(self, amount_sat: int, feerate_per_kw: int) -> None:
        """Raises NodeError if a channel of this size cannot be funded."""
        try:
            most_sat = self._wallet.max_amount_sat(feerate_per_kw)
        except we.WalletError as error:
            raise node_error(error) from error
        if amount_sat > most_sat:
            raise NodeError(
                "resource_exhausted",
                f"the wallet can fund a channel of {most_sat:,} sat at most (fee set aside), not {amount_sat:,} sat",
            )

    def script_of(self, address: str) -> bytes:
        """Raises NodeError."""
        try:
            return script_of(address, self._wallet.network)
        except AddressError as error:
            raise node_error(error) from error

    async def new_address(self, kind: Literal["p2tr", "p2wpkh"]) -> str:
        """A fresh address."""
        return await self._wallet.new_address(kind)

    def coins(self) -> list[CoinView]:
        """All unspent outputs."""
        return [
            CoinView(
                txid=coin.outpoint.txid,
                vout=coin.outpoint.vout,
                amount_sat=coin.value_sat,
                address=coin.address,
                confirmations=coin.confirmations,
                reserved=coin.reserved,
            )
            for coin in self._wallet.coins()
        ]

    def transactions(self) -> list[TransactionView]:
        """The newest first."""
        return [_transaction_view(info) for info in self._wallet.transactions()]

    async def send(
        self,
        address: str,
        amount_sat: int | None,
        feerate_per_kw: int | None,
        idempotency: Idempotency,
        idempotency_key: str,
    ) -> TransactionView:
        """Pay an address; None sends everything."""
        return await idempotency.once(
            idempotency_key,
            "send_coins",
            (address, amount_sat, feerate_per_kw),
            lambda mark: self._send(address, amount_sat, feerate_per_kw, mark),
            self._sent_before,
        )

    async def _send(
        self, address: str, amount_sat: int | None, feerate_per_kw: int | None, mark: Mark
    ) -> TransactionView:
        script = self.script_of(address)
        feerate = feerate_per_kw or self._feerates.funding_per_kw
        outputs = () if amount_sat is None else (TxOut(amount_sat, script),)
        request = Request(outputs, feerate, drain_to=script if amount_sat is None else None)
        try:
            funded, writes = self._wallet.plan_tx(request)
        except we.WalletError as error:
            raise node_error(error) from error
        writes += self._wallet.record(funded, label=f"sent to {address}", fixed=False)
        await self._store.commit([*to_rows(writes), *mark(funded.txid)])
        result = await self._broadcast(funded.tx)
        if result is not None and not result.ok and not result.retriable:
            await self._store.commit(to_rows(self._wallet.forget(funded.txid)))
            raise NodeError("failed_precondition", f"the network refuses the transaction: {result.reason}")
        return await self._sent_before(funded.txid)

    async def _sent_before(self, txid: bytes) -> TransactionView:
        try:
            return _transaction_view(self._wallet.transaction(txid))
        except we.UnknownTransaction as error:
            raise node_error(error) from error

    async def _broadcast(self, tx: Tx) -> BroadcastResult | None:
        try:
            return await self._source.broadcast(tx)
        except ChainUnavailable as error:
            log.warning("layer 1 is away: the transaction is sent when it is back", reason=str(error))
            return None

    async def bump(self, txid: bytes, feerate_per_kw: int) -> TransactionView:
        """Raise a transaction's fee rate."""
        try:
            sent = await self._wallet.bump(txid, feerate_per_kw)
            return _transaction_view(self._wallet.transaction(sent.txid))
        except WALLET_ERRORS as error:
            raise node_error(error) from error

    async def rescan(self, from_height: int) -> AsyncIterator[RescanView]:
        """Look through old blocks again. What channels are about, the monitor watches: this is for the wallet alone."""
        wallet = self._wallet
        if from_height > wallet.height:
            raise NodeError("invalid_argument", f"there is no block {from_height} yet: the last is {wallet.height}")
        if self._rescanning:
            raise NodeError("failed_precondition", "a rescan is under way already")
        known = {coin.outpoint for coin in wallet.coins()}
        self._rescanning = True
        try:
            async for height in wallet.rescan(self._source, from_height):
                found = [coin.value_sat for coin in wallet.coins() if coin.outpoint not in known]
                yield RescanView(height, wallet.height, len(found), sum(found))
        except ChainUnavailable as error:
            raise NodeError("unavailable", f"layer 1 is away ({error}): begin again when it is back") from error
        except ChainError as error:
            raise NodeError(
                "not_found",
                f"layer 1 does not have the blocks ({error}): one that does not prune is needed, or a later start",
            ) from error
        finally:
            self._rescanning = False


def _transaction_view(info: TxInfo) -> TransactionView:
    return TransactionView(
        txid=info.txid,
        amount_sat=info.amount_sat,
        fee_sat=info.fee_sat,
        confirmations=info.confirmations,
        label=info.label,
        created_seconds=info.time_seconds,
    )
