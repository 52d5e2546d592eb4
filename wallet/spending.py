"""Making transactions from the wallet's coins: choosing, signing, replacing and lifting by a child.

Everything here is synchronous and only changes memory; `wallet.wallet` persists and broadcasts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wallet.bitcoin import OutPoint, Tx, TxOut
from wallet.bitcoin.address import Network
from wallet.bitcoin.sighash import SighashCache
from wallet.coins import Coin, Ledger, WalletTx
from wallet.errors import CannotBump, CoinUnavailable, InsufficientFunds, UnknownTransaction
from wallet.fees import (
    FEERATE_FLOOR_SAT_PER_KW,
    INCREMENTAL_RELAY_SAT_PER_KVB,
    fee_for_tx,
    feerate_of,
    replacement_fee_sat,
    weight_to_vsize,
)
from wallet.funding import Draft, Request, build, check_request, replacement, spendable_sat
from wallet.keys import CHANGE, AddressKind, Keys
from wallet.reservations import Reservations


@dataclass(frozen=True, slots=True)
class FundedTx:
    """A transaction whose coins are reserved under `reservation`.

    `tx` is signed but for foreign inputs (and unsigned if that was asked for). Neither recorded nor broadcast yet:
    `Wallet.record` or `Wallet.publish` do that, `Wallet.release` lets the coins go.
    """

    tx: Tx
    txid: bytes
    coins: tuple[Coin | None, ...]
    spent: tuple[TxOut, ...]
    fee_sat: int
    change_vout: int | None
    elastic_vout: int | None
    reservation: int

    def vout_of(self, script_pubkey: bytes) -> int:
        """Where the output to a script is. Raises ValueError."""
        return [txout.script_pubkey for txout in self.tx.outputs].index(script_pubkey)


class Spender:
    """Makes transactions from the ledger's coins."""

    def __init__(
        self,
        keys: Keys,
        ledger: Ledger,
        reservations: Reservations,
        network: Network,
        rng: random.Random,
        tip_height: Callable[[], int],
    ) -> None:
        self._keys = keys
        self._ledger = ledger
        self._reservations = reservations
        self._network = network
        self._rng = rng
        self._tip_height = tip_height

    # Coins

    def spendable(self, min_confirmations: int = 0) -> list[Coin]:
        """Free, mature coins: confirmed so often, or with 0 also unconfirmed ones that nobody else can make vanish."""
        tip = self._tip_height()
        coins = []
        for outpoint, coin in self._ledger.coins().items():
            if self._reservations.holds(outpoint) or not coin.mature(tip):
                continue
            if coin.confirmations(tip) >= max(min_confirmations, 1) or (min_confirmations == 0 and coin.trusted):
                coins.append(coin)
        return coins

    def coin(self, outpoint: OutPoint) -> Coin:
        """A coin by name, to be spent. Raises CoinUnavailable."""
        coin = self._ledger.coins().get(outpoint)
        if coin is None:
            known = self._ledger.owner(outpoint) is not None
            raise CoinUnavailable(f"{outpoint} is {'spent already' if known else 'no coin of this wallet'}")
        if self._reservations.holds(outpoint):
            raise CoinUnavailable(f"{outpoint} is reserved for another transaction")
        if not coin.mature(self._tip_height()):
            raise CoinUnavailable(f"{outpoint} was mined and is not mature yet: 100 confirmations are needed")
        return coin

    def max_amount_sat(self, request: Request, script_length: int, min_confirmations: int) -> int:
        """The most that one more output could get, with a script of so many bytes."""
        return spendable_sat(self.spendable(min_confirmations), request, script_length)

    def draft(self, request: Request, *, min_confirmations: int = 0, only: Sequence[Coin] | None = None) -> Draft:
        """Choose coins (confirmed ones, if they suffice) and lay out a transaction. See `wallet.funding.build`."""
        check_request(request, self._network)
        if only is not None:
            return build(only, request, self._change_script(request.change_kind), self._rng)
        change = self._change_script(request.change_kind)
        confirmed = self.spendable(max(1, min_confirmations))
        every = confirmed if min_confirmations else self.spendable(0)
        if request.drain_to is None and len(confirmed) < len(every):
            try:
                return build(confirmed, request, change, self._rng)
            except InsufficientFunds:
                pass  # with unconfirmed change of our own, then
        return build(every, request, change, self._rng)

    def _change_script(self, kind: AddressKind) -> Callable[[], bytes]:
        """Many a draft comes to nothing: the script counts as used once the draft's coins are reserved."""
        return lambda: self._keys.script(self._ledger.book.following(kind, CHANGE))

    # Signatures

    def sign(self, tx: Tx, spent: Sequence[TxOut]) -> Tx:
        """Sign every input that spends an output to one of our scripts; `spent` are all inputs' outputs, in order."""
        cache = SighashCache(tx, spent)
        inputs = list(tx.inputs)
        for place, txout in enumerate(spent):
            path = self._ledger.book.path_of(txout.script_pubkey)
            if path is not None:
                inputs[place] = inputs[place]._replace(witness=self._keys.witness(tx, place, path, spent, cache))
        return tx.replace(inputs=tuple(inputs))

    def signed(self, draft: Draft) -> Draft:
        """The draft with our inputs signed."""
        return replace(draft, tx=self.sign(draft.tx, draft.spent))

    # More fee for a transaction that is out already

    def find(self, txid: bytes) -> WalletTx:
        """Raises UnknownTransaction."""
        wallet_tx = self._ledger.txs.get(txid)
        if wallet_tx is None:
            raise UnknownTransaction(f"no transaction {txid[::-1].hex()} in this wallet")
        return wallet_tx

    def latest(self, txid: bytes) -> WalletTx:
        """The transaction, or what stands in its place after replacements by this wallet."""
        wallet_tx = self.find(txid)
        seen = {txid}
        while wallet_tx.height is None and wallet_tx.replaced_by in self._ledger.txs:
            assert wallet_tx.replaced_by is not None
            if wallet_tx.replaced_by in seen:
                break
            seen.add(wallet_tx.replaced_by)
            wallet_tx = self._ledger.txs[wallet_tx.replaced_by]
        return wallet_tx

    def can_replace(self, wallet_tx: WalletTx) -> str | None:
        """Why another transaction cannot take this one's place; None if it can."""
        if not wallet_tx.own or wallet_tx.fee_sat is None:
            return "this wallet did not make it"
        if wallet_tx.fixed:
            return "others build on its id (it funds a channel)"
        if self._ledger.live_children(wallet_tx.txid):
            return "another transaction spends it already"
        if any(self._reservations.holds(OutPoint(wallet_tx.txid, vout)) for vout in range(len(wallet_tx.tx.outputs))):
            return "another transaction is being made of it"
        if any(self._ledger.owner(txin.outpoint) is None for txin in wallet_tx.tx.inputs):
            return "it has inputs of somebody else"
        return None

    def replace_by_fee(
        self, wallet_tx: WalletTx, feerate_sat_per_kw: int, keep_back_sat: int, extra_fee_sat: int = 0
    ) -> Draft:
        """A replacement that pays the rate, `extra_fee_sat` for its ancestors, and what BIP 125 demands.

        Raises CannotBump, InsufficientFunds.
        """
        assert wallet_tx.fee_sat is not None
        tx = wallet_tx.tx
        weight = tx.weight()
        coins = [self._own_coin(txin.outpoint) for txin in tx.inputs]
        least = replacement_fee_sat(wallet_tx.fee_sat, weight_to_vsize(weight), INCREMENTAL_RELAY_SAT_PER_KVB)
        wanted = max(least, fee_for_tx(feerate_sat_per_kw, weight) + extra_fee_sat)
        elastic = wallet_tx.elastic_vout
        if elastic is not None:
            draft = replacement(tx, coins, elastic, wanted)
            if draft is not None:
                return draft
        kept = [txout for vout, txout in enumerate(tx.outputs) if vout != elastic or not self._is_ours(txout)]
        request = Request(
            tuple(kept),
            feerate_sat_per_kw,
            required=tuple(coins),
            extra_fee_sat=extra_fee_sat,
            keep_back_sat=keep_back_sat,
            version=tx.version,
            locktime=tx.locktime,
        )
        return self._replace_with_more_coins(wallet_tx, request)

    def _replace_with_more_coins(self, wallet_tx: WalletTx, request: Request) -> Draft:
        """A replacement may not spend new unconfirmed outputs (BIP 125, rule 2): only confirmed coins are added."""
        assert wallet_tx.fee_sat is not None
        vsize = weight_to_vsize(wallet_tx.tx.weight())
        for _ in range(4):
            least = replacement_fee_sat(wallet_tx.fee_sat, vsize, INCREMENTAL_RELAY_SAT_PER_KVB)
            draft = self.draft(replace(request, min_fee_sat=least), min_confirmations=1)
            grown = weight_to_vsize(self._signed_weight(draft))
            if draft.fee_sat >= replacement_fee_sat(wallet_tx.fee_sat, grown, INCREMENTAL_RELAY_SAT_PER_KVB):
                return draft
            vsize = grown
        raise CannotBump(f"no replacement of {wallet_tx.tx.txid_hex} pays enough more than it does")

    def _signed_weight(self, draft: Draft) -> int:
        """The weight once signed: what its inputs are known to weigh at most."""
        bare = 4 * len(draft.tx.serialize_stripped()) + 2
        return bare + sum(coin.path.kind.input_weight - 4 * 41 for coin in draft.coins if coin is not None)

    def _is_ours(self, txout: TxOut) -> bool:
        return self._ledger.book.path_of(txout.script_pubkey) is not None

    def _own_coin(self, outpoint: OutPoint) -> Coin:
        """An output of ours as a coin, though a transaction (to be replaced) spends it."""
        path, txout = self._ledger.owner(outpoint), self._ledger.txout(outpoint)
        assert path is not None
        assert txout is not None
        made_by = self._ledger.txs[outpoint.txid]
        return Coin(outpoint, txout, path, made_by.height, made_by.is_coinbase, True)

    def child_pays(self, wallet_tx: WalletTx, feerate_sat_per_kw: int, keep_back_sat: int) -> Draft:
        """A child that lifts the transaction (and its unconfirmed ancestors) to the rate. Raises CannotBump."""
        if wallet_tx.tx.version == 3:
            raise CannotBump(f"{wallet_tx.tx.txid_hex} is of version 3, whose child its maker has to choose")
        extra = self._missing_fee(wallet_tx, feerate_sat_per_kw)
        if extra == 0:
            raise CannotBump(f"{wallet_tx.tx.txid_hex} pays {feerate_sat_per_kw} sat/kw already")
        handles = [
            coin
            for outpoint, coin in self._ledger.coins().items()
            if outpoint.txid == wallet_tx.txid and not self._reservations.holds(outpoint)
        ]
        if not handles:
            for child in self._ledger.live_children(wallet_tx.txid):
                if self.can_replace(child) is None:
                    missing = self._missing_fee(child, feerate_sat_per_kw, without_itself=True)
                    return self.replace_by_fee(child, feerate_sat_per_kw, keep_back_sat, missing)
            raise CannotBump(f"{wallet_tx.tx.txid_hex} has no unspent output of this wallet that could pay for it")
        handle = max(handles, key=lambda coin: coin.value_sat)
        script = self._change_script(handle.path.kind)()
        request = Request((), feerate_sat_per_kw, drain_to=script, required=(handle,), extra_fee_sat=extra)
        try:
            return self.draft(request, only=())
        except InsufficientFunds:
            more = replace(request, drain_to=None, keep_back_sat=keep_back_sat, change_kind=handle.path.kind)
            return self.draft(more, min_confirmations=1)

    def _missing_fee(self, wallet_tx: WalletTx, feerate_sat_per_kw: int, *, without_itself: bool = False) -> int:
        """What the transaction and its unconfirmed ancestors, each by itself, pay less than the rate asks for."""
        return sum(
            max(0, fee_for_tx(feerate_sat_per_kw, tx.tx.weight()) - self.known_fee(tx))
            for tx in self.unconfirmed_ancestry(wallet_tx)
            if not (without_itself and tx is wallet_tx)
        )

    def unconfirmed_ancestry(self, wallet_tx: WalletTx) -> list[WalletTx]:
        """The transaction and the unconfirmed ones of the wallet that it builds on."""
        found = {wallet_tx.txid: wallet_tx}
        pending = [wallet_tx]
        while pending:
            for txin in pending.pop().tx.inputs:
                parent = self._ledger.txs.get(txin.outpoint.txid)
                if parent is not None and parent.height is None and parent.txid not in found:
                    found[parent.txid] = parent
                    pending.append(parent)
        return list(found.values())

    @staticmethod
    def known_fee(wallet_tx: WalletTx) -> int:
        """Its fee, or where its inputs are unknown, the least that would have been relayed."""
        if wallet_tx.fee_sat is not None:
            return wallet_tx.fee_sat
        return fee_for_tx(FEERATE_FLOOR_SAT_PER_KW, wallet_tx.tx.weight())

    @staticmethod
    def feerate(wallet_tx: WalletTx) -> int:
        """What it pays, in sat/kw."""
        return feerate_of(Spender.known_fee(wallet_tx), wallet_tx.tx.weight())
