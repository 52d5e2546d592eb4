"""The wallet's ledger: its transactions, and the coins that follow from them.

Transactions are the only truth that is kept; which outputs are unspent is worked out from them. A transaction is
*live* if it is in the chain, or unconfirmed with nothing having taken its place. Blocks going up and down, replacements
and conflicts only change transactions; coins follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from wallet.bitcoin import COINBASE_MATURITY_BLOCKS, Block, OutPoint, Tx, TxOut
from wallet.keys import CHANGE, EXTERNAL, AddressKind, KeyPath

GAP_LIMIT: Final = 100
"""Scripts looked for beyond the last used or given-out one. More than BIP 44's 20, because a Lightning node gives out
many scripts (for closing channels) that may never be used."""
_SETTLED_BLOCKS: Final = 250
CHAINS: Final = tuple((kind, chain) for kind in AddressKind for chain in (EXTERNAL, CHANGE))


@dataclass(frozen=True, slots=True)
class WalletTx:
    """A transaction that concerns the wallet.

    `height` and `block_hash` are None while unconfirmed. `own`: made by this wallet, so sent again until it is mined.
    `fixed`: others build on its id (a channel's funding), so it is never replaced by another. `elastic_vout`: the
    output that pays for a higher fee (change, or the payment if everything was sent). `replaced_by`: the transaction
    that took its place, or its own id if it was given up.
    """

    txid: bytes
    tx: Tx
    height: int | None
    block_hash: bytes | None
    time_seconds: int
    fee_sat: int | None = None
    own: bool = False
    fixed: bool = False
    elastic_vout: int | None = None
    replaced_by: bytes | None = None
    label: str = ""

    @property
    def live(self) -> bool:
        """Whether it is in the chain or may still get there."""
        return self.height is not None or self.replaced_by is None

    @property
    def is_coinbase(self) -> bool:
        """Whether it is a block's first transaction."""
        return self.tx.inputs[0].outpoint == _COINBASE_OUTPOINT

    @property
    def abandoned(self) -> bool:
        """Whether it was given up, rather than replaced."""
        return self.replaced_by == self.txid


_COINBASE_OUTPOINT: Final = OutPoint(bytes(32), 0xFFFF_FFFF)


@dataclass(frozen=True, slots=True)
class Coin:
    """An output of the wallet that no live transaction spends. `trusted`: nobody else can make it vanish."""

    outpoint: OutPoint
    txout: TxOut
    path: KeyPath
    height: int | None
    coinbase: bool
    trusted: bool

    @property
    def value_sat(self) -> int:
        """Its value."""
        return self.txout.value_sat

    def confirmations(self, tip_height: int) -> int:
        """0 if unconfirmed, 1 in the tip."""
        return 0 if self.height is None else max(0, tip_height - self.height + 1)

    def mature(self, tip_height: int) -> bool:
        """Whether the next block may spend it: a coinbase needs 100 confirmations."""
        return not self.coinbase or self.confirmations(tip_height) >= COINBASE_MATURITY_BLOCKS


class NewScript(NamedTuple):
    """A script that is looked for from now on."""

    script_pubkey: bytes
    path: KeyPath


class ScriptBook:
    """The scripts that are the wallet's: all given out or used ones, and `gap_limit` more in each chain."""

    def __init__(self, derive: Callable[[KeyPath], bytes], gap_limit: int = GAP_LIMIT) -> None:
        self._derive = derive
        self._gap_limit = gap_limit
        self._paths: dict[bytes, KeyPath] = {}
        self._derived = dict.fromkeys(CHAINS, 0)
        self._next = dict.fromkeys(CHAINS, 0)
        self._fresh: list[NewScript] = []
        self._moved: set[tuple[AddressKind, int]] = set()

    def restore(self, known: Iterable[NewScript], cursors: Iterable[KeyPath]) -> None:
        """What was persisted; `cursors` are the next paths to give out."""
        for script_pubkey, path in known:
            self._paths[script_pubkey] = path
            self._derived[path.kind, path.chain] = max(self._derived[path.kind, path.chain], path.child + 1)
        for path in cursors:
            self._next[path.kind, path.chain] = path.child

    def fill(self) -> None:
        """Look ahead in all chains."""
        for kind, chain in CHAINS:
            self._extend(kind, chain)

    def drain(self) -> tuple[list[NewScript], list[KeyPath]]:
        """(scripts that are not persisted yet, cursors that moved: the next path of a chain to give out)."""
        fresh, self._fresh = self._fresh, []
        moved, self._moved = self._moved, set()
        return fresh, [KeyPath(kind, chain, self._next[kind, chain]) for kind, chain in sorted(moved)]

    def cursors(self) -> list[KeyPath]:
        """The next paths to give out, of all chains."""
        return [self.following(kind, chain) for kind, chain in CHAINS]

    def path_of(self, script_pubkey: bytes) -> KeyPath | None:
        """Whose script this is, or None."""
        return self._paths.get(script_pubkey)

    @property
    def by_script(self) -> dict[bytes, KeyPath]:
        """All scripts looked for."""
        return self._paths

    def following(self, kind: AddressKind, chain: int) -> KeyPath:
        """The next path that was neither given out nor used. `note_used` once it is, else it is given again."""
        return KeyPath(kind, chain, self._next[kind, chain])

    def take(self, kind: AddressKind, chain: int) -> KeyPath:
        """The same, given out by that."""
        path = self.following(kind, chain)
        self._move(kind, chain, path.child + 1)
        return path

    def note_used(self, path: KeyPath) -> bool:
        """An output to this path exists. True if scripts were added, so that what was scanned must be seen again."""
        if path.child < self._next[path.kind, path.chain]:
            return False
        return self._move(path.kind, path.chain, path.child + 1)

    def _move(self, kind: AddressKind, chain: int, child: int) -> bool:
        self._next[kind, chain] = child
        self._moved.add((kind, chain))
        return self._extend(kind, chain)

    def _extend(self, kind: AddressKind, chain: int) -> bool:
        first, last = self._derived[kind, chain], self._next[kind, chain] + self._gap_limit
        for child in range(first, last):
            path = KeyPath(kind, chain, child)
            script_pubkey = self._derive(path)
            self._paths[script_pubkey] = path
            self._fresh.append(NewScript(script_pubkey, path))
        self._derived[kind, chain] = max(first, last)
        return last > first


class Ledger:
    """Transactions and coins. Every method leaves `changed` with what must be persisted."""

    def __init__(self, book: ScriptBook) -> None:
        self.book = book
        self.txs: dict[bytes, WalletTx] = {}
        self.changed: dict[bytes, WalletTx] = {}
        self._owned: dict[OutPoint, KeyPath] = {}
        self._spends: dict[OutPoint, dict[bytes, None]] = {}
        self._open: dict[OutPoint, None] = {}  # in order: which coins are taken follows from the history alone
        self._coins: dict[OutPoint, Coin] | None = None

    # What is known

    def restore(self, txs: Iterable[WalletTx]) -> None:
        """What was persisted."""
        for wallet_tx in txs:
            self._put(wallet_tx)
        self.changed.clear()

    def owner(self, outpoint: OutPoint) -> KeyPath | None:
        """The path of an output of the wallet, spent or not; None if it is not the wallet's."""
        return self._owned.get(outpoint)

    def txout(self, outpoint: OutPoint) -> TxOut | None:
        """An output of any transaction that the ledger has."""
        wallet_tx = self.txs.get(outpoint.txid)
        return None if wallet_tx is None else wallet_tx.tx.outputs[outpoint.vout]

    def live_spender(self, outpoint: OutPoint) -> WalletTx | None:
        """The live transaction that spends `outpoint`."""
        for txid in self._spends.get(outpoint, ()):
            if self.txs[txid].live:
                return self.txs[txid]
        return None

    def live_children(self, txid: bytes) -> list[WalletTx]:
        """Live transactions that spend an output of this one."""
        children = {}
        for vout in range(len(self.txs[txid].tx.outputs)):
            spender = self.live_spender(OutPoint(txid, vout))
            if spender is not None:
                children[spender.txid] = spender
        return list(children.values())

    def coins(self) -> dict[OutPoint, Coin]:
        """All unspent outputs of live transactions, unconfirmed and immature ones too."""
        if self._coins is None:
            self._coins = {}
            for outpoint in self._open:
                wallet_tx = self.txs[outpoint.txid]
                if wallet_tx.live and self.live_spender(outpoint) is None:
                    self._coins[outpoint] = self._coin(outpoint, wallet_tx)
        return self._coins

    def _coin(self, outpoint: OutPoint, wallet_tx: WalletTx) -> Coin:
        return Coin(
            outpoint,
            wallet_tx.tx.outputs[outpoint.vout],
            self._owned[outpoint],
            wallet_tx.height,
            wallet_tx.is_coinbase,
            self._trusted(wallet_tx),
        )

    def _trusted(self, wallet_tx: WalletTx) -> bool:
        """In the chain, or made of nothing but trusted outputs of ours (walked without recursion: chains get long)."""
        pending, seen = [wallet_tx], {wallet_tx.txid}
        while pending:
            current = pending.pop()
            if current.height is not None:
                continue
            for txin in current.tx.inputs:
                if txin.outpoint not in self._owned:
                    return False
                parent = self.txs[txin.outpoint.txid]
                if parent.txid not in seen:
                    seen.add(parent.txid)
                    pending.append(parent)
        return True

    def unconfirmed(self) -> list[WalletTx]:
        """Live transactions that are in no block, parents before children."""
        waiting = {txid: tx for txid, tx in self.txs.items() if tx.height is None and tx.replaced_by is None}
        ordered: dict[bytes, WalletTx] = {}

        def visit(start: bytes) -> None:
            stack = [start]
            while stack:
                txid = stack[-1]
                parents = {txin.outpoint.txid for txin in waiting[txid].tx.inputs}
                missing = [p for p in parents if p in waiting and p not in ordered]
                if missing:
                    stack.extend(missing)
                else:
                    ordered[txid] = waiting[txid]
                    stack.pop()

        for txid in waiting:
            if txid not in ordered:
                visit(txid)
        return list(ordered.values())

    # What happens

    def connect(self, height: int, block_hash: bytes, block: Block) -> None:
        """A block of the chain. May be given again (a rescan): what is known stays as it is."""
        again = True
        while again:
            again = False
            for tx in block.txs:
                again |= self._see_in_block(tx, height, block_hash, block.header.time)

    def _see_in_block(self, tx: Tx, height: int, block_hash: bytes, time_seconds: int) -> bool:
        paths = self.book.by_script
        used = [paths[txout.script_pubkey] for txout in tx.outputs if txout.script_pubkey in paths]
        touched = [txin.outpoint for txin in tx.inputs if txin.outpoint in self._owned or txin.outpoint in self._spends]
        if not used and not touched:
            return False
        txid = tx.txid()
        concerns_us = bool(used) or any(outpoint in self._owned for outpoint in touched) or txid in self.txs
        if concerns_us:
            known = self.txs.get(txid)
            if known is None:
                self._put(WalletTx(txid, tx, height, block_hash, time_seconds, self._fee_of(tx)))
            elif (known.height, known.block_hash) != (height, block_hash):
                self._put(
                    replace(
                        known, tx=tx, height=height, block_hash=block_hash, time_seconds=time_seconds, replaced_by=None
                    )
                )
                if known.replaced_by is not None:
                    self._revive_children(txid)
            else:
                self._index(known)  # a script of it may be looked for only since the last look
        for outpoint in touched:
            for other in self._others(outpoint, txid):
                self._kill(other, txid)
        extended = False
        for path in used:
            extended |= self.book.note_used(path)
        return extended

    def disconnect(self, height: int, block_hash: bytes) -> None:
        """The block on top left the chain: its transactions wait again, its coinbase is void."""
        for wallet_tx in [tx for tx in self.txs.values() if tx.height == height and tx.block_hash == block_hash]:
            void = wallet_tx.txid if wallet_tx.is_coinbase else None
            self._put(replace(wallet_tx, height=None, block_hash=None, replaced_by=void))
            if void is not None:
                self._kill_children(wallet_tx.txid, void)

    def add_unconfirmed(self, wallet_tx: WalletTx) -> None:
        """A new unconfirmed transaction; live ones that spend the same outputs give way to it, mined ones do not."""
        assert wallet_tx.height is None
        known = self.txs.get(wallet_tx.txid)
        if known is not None and known.live:  # a block or an earlier note brought it: what is new is what we know of it
            self._put(
                replace(
                    known,
                    fee_sat=wallet_tx.fee_sat if known.fee_sat is None else known.fee_sat,
                    own=known.own or wallet_tx.own,
                    fixed=known.fixed or wallet_tx.fixed,
                    elastic_vout=wallet_tx.elastic_vout if known.elastic_vout is None else known.elastic_vout,
                    label=known.label or wallet_tx.label,
                )
            )
            return
        for path in [self.book.path_of(txout.script_pubkey) for txout in wallet_tx.tx.outputs]:
            if path is not None:
                self.book.note_used(path)
        spenders = [self.live_spender(txin.outpoint) for txin in wallet_tx.tx.inputs]
        mined = next((other for other in spenders if other is not None and other.height is not None), None)
        if mined is not None:  # too late: what it spends was spent in the chain
            self._put(replace(wallet_tx, replaced_by=mined.txid))
            return
        for txin in wallet_tx.tx.inputs:
            for other in self._others(txin.outpoint, wallet_tx.txid):
                self._kill(other, wallet_tx.txid)
        self._put(wallet_tx)

    def abandon(self, txid: bytes) -> None:
        """Give up an unconfirmed transaction and what builds on it; what it spends is free again."""
        self._kill(txid, txid)

    def update(self, wallet_tx: WalletTx) -> None:
        """Change what is noted about a transaction."""
        assert wallet_tx.txid in self.txs
        self._put(wallet_tx)

    def settle(self, tip_height: int) -> None:
        """Forget, for counting coins only, outputs that were spent too deep in the chain to come back."""
        for outpoint in list(self._open):
            spender = self.live_spender(outpoint)
            if spender is not None and spender.height is not None and spender.height < tip_height - _SETTLED_BLOCKS:
                del self._open[outpoint]

    def _fee_of(self, tx: Tx) -> int | None:
        spent = [self.txout(txin.outpoint) for txin in tx.inputs]
        if any(txout is None for txout in spent):
            return None
        return sum(txout.value_sat for txout in spent if txout) - sum(txout.value_sat for txout in tx.outputs)

    def _put(self, wallet_tx: WalletTx) -> None:
        self._index(wallet_tx)
        self.txs[wallet_tx.txid] = self.changed[wallet_tx.txid] = wallet_tx
        self._coins = None

    def _index(self, wallet_tx: WalletTx) -> None:
        txid = wallet_tx.txid
        for vout, txout in enumerate(wallet_tx.tx.outputs):
            path = self.book.path_of(txout.script_pubkey)
            outpoint = OutPoint(txid, vout)
            if path is not None and outpoint not in self._owned:
                self._owned[outpoint] = path
                self._open[outpoint] = None
                self._coins = None
        for txin in wallet_tx.tx.inputs:
            self._spends.setdefault(txin.outpoint, {})[txid] = None

    def _others(self, outpoint: OutPoint, txid: bytes) -> list[bytes]:
        """What else spends an output."""
        return [other for other in self._spends.get(outpoint, ()) if other != txid]

    def _kill(self, txid: bytes, by: bytes) -> None:
        wallet_tx = self.txs[txid]
        if wallet_tx.height is not None or wallet_tx.replaced_by is not None:
            return
        self._put(replace(wallet_tx, replaced_by=by))
        self._kill_children(txid, by)

    def _spender_ids(self, txid: bytes) -> Iterator[bytes]:
        for vout in range(len(self.txs[txid].tx.outputs)):
            yield from tuple(self._spends.get(OutPoint(txid, vout), ()))

    def _kill_children(self, txid: bytes, by: bytes) -> None:
        for child in self._spender_ids(txid):
            self._kill(child, by)

    def _revive_children(self, txid: bytes) -> None:
        """What was built on a transaction that turned out to be mined after all is good again, if nothing conflicts."""
        for child_id in self._spender_ids(txid):
            child = self.txs[child_id]
            if child.live or child.abandoned:
                continue
            inputs = [txin.outpoint for txin in child.tx.inputs]
            parents = [self.txs[outpoint.txid] for outpoint in inputs if outpoint.txid in self.txs]
            if all(parent.live for parent in parents) and all(self.live_spender(o) is None for o in inputs):
                self._put(replace(child, replaced_by=None))
                self._revive_children(child_id)
