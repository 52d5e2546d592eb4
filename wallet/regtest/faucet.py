"""The wallets inside `regtestd`: keys, coins, sending. Coins for tests, worth nothing; secrets lie in plain text.

One wallet without a name is there from the start and mines its own coins when it is asked for more than it has.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from embit import bip32

from wallet.bitcoin import COINBASE_MATURITY_BLOCKS, OutPoint, Tx, TxOut
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import REGTEST, address_of
from wallet.bitcoin.encoding import hash160
from wallet.bitcoin.secp import pubkey_of, taproot_output_key, xonly
from wallet.regtest.chain import BlockNode
from wallet.regtest.errors import (
    WALLET_ALREADY_EXISTS,
    WALLET_ALREADY_LOADED,
    WALLET_NOT_FOUND,
    WALLET_NOT_SPECIFIED,
    RpcError,
)
from wallet.regtest.mempool import Mempool
from wallet.regtest.store import Coin, Store

_PURPOSES = {"legacy": 44, "p2sh-segwit": 49, "bech32": 84, "bech32m": 86}
ADDRESS_TYPES = tuple(_PURPOSES)


class Key(NamedTuple):
    """A key of a wallet and the script that pays it. `kind` is one of bitcoind's address types."""

    script: bytes
    kind: str
    change: bool
    number: int
    secret: bytes
    label: str

    @property
    def pubkey(self) -> bytes:
        """33 bytes compressed."""
        return pubkey_of(self.secret)

    @property
    def path(self) -> str:
        """Its BIP 32 path below the wallet's master key."""
        return f"m/{_PURPOSES[self.kind]}h/1h/0h/{int(self.change)}/{self.number}"

    @property
    def address(self) -> str:
        """Its address."""
        address = address_of(self.script, REGTEST)
        assert address is not None, "a wallet's scripts have addresses"
        return address


class WalletCoin(NamedTuple):
    """An output of a wallet. `depth` is 0 in the mempool; `trusted` unconfirmed coins come from the wallet itself."""

    outpoint: OutPoint
    output: TxOut
    key: Key
    depth: int
    mature: bool
    trusted: bool
    ancestors: int = 0


class Wallet:
    """Keys and the coins that they can spend, as chain and mempool have them now."""

    def __init__(self, name: str, seed: bytes, store: Store, mempool: Mempool) -> None:
        self.name = name
        self.store = store
        self.mempool = mempool
        self.root = bip32.HDKey.from_seed(seed)
        self.keys: dict[bytes, Key] = {}
        self.locked: set[OutPoint] = set()
        self._next: dict[tuple[str, bool], int] = {}
        self._confirmed: list[tuple[OutPoint, Coin]] = []
        self._confirmed_at: BlockNode | None = None
        rows = store.db.execute(
            "SELECT script, kind, change, number, secret, label FROM keys WHERE wallet = ?", (name,)
        )
        for script, kind, change, number, secret, label in rows:
            self._remember(Key(script, kind, bool(change), number, secret, label))

    @property
    def fingerprint(self) -> bytes:
        """The master key's BIP 32 fingerprint, 4 bytes."""
        return bytes(self.root.my_fingerprint)

    def _remember(self, key: Key) -> None:
        self.keys[key.script] = key
        slot = (key.kind, key.change)
        self._next[slot] = max(self._next.get(slot, 0), key.number + 1)

    def new_key(self, kind: str = "bech32", *, change: bool = False, label: str = "") -> Key:
        """The next unused key of a kind."""
        number = self._next.get((kind, change), 0)
        child = self.root.derive(f"m/{_PURPOSES[kind]}h/1h/0h/{int(change)}/{number}")
        secret = bytes(child.secret)
        key = Key(_script_for(kind, pubkey_of(secret)), kind, change, number, secret, label)
        with self.store.transaction():
            self.store.db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key.script, self.name, kind, change, number, secret, label),
            )
        self._remember(key)
        return key

    def set_label(self, script: bytes, label: str) -> None:
        """Name an address."""
        with self.store.transaction():
            self.store.db.execute("UPDATE keys SET label = ? WHERE script = ?", (label, script))
        self.keys[script] = self.keys[script]._replace(label=label)

    def coins(self) -> Iterator[WalletCoin]:
        """All outputs that are the wallet's and that nothing spends, unconfirmed and immature ones included."""
        pool, height = self.mempool.pool, self.mempool.chain.height
        for outpoint, coin in self._in_chain():
            if outpoint not in pool.spenders:
                depth = height - coin.height + 1
                mature = not coin.coinbase or depth > COINBASE_MATURITY_BLOCKS
                yield WalletCoin(outpoint, coin.output, self.keys[coin.output.script_pubkey], depth, mature, True)
        for entry in pool.entries.values():
            for vout, output in enumerate(entry.tx.outputs):
                key = self.keys.get(output.script_pubkey)
                outpoint = OutPoint(entry.txid, vout)
                if key is not None and outpoint not in pool.spenders:
                    trusted = all(spent.script_pubkey in self.keys for spent in entry.spent)
                    family = len(pool.ancestors((entry.txid,)))
                    yield WalletCoin(outpoint, output, key, 0, True, trusted, family)

    def _in_chain(self) -> list[tuple[OutPoint, Coin]]:
        if self._confirmed_at is not self.mempool.chain.tip:
            self._confirmed = list(self.store.wallet_coins(self.name))
            self._confirmed_at = self.mempool.chain.tip
        return self._confirmed

    def spendable(self) -> list[WalletCoin]:
        """Coins to pay with: mature, not locked, unconfirmed only if the wallet made them. Best first."""
        usable = [c for c in self.coins() if c.mature and c.trusted and c.outpoint not in self.locked]
        return sorted(usable, key=lambda coin: (coin.depth == 0, coin.ancestors, -coin.output.value_sat))

    def owns(self, tx: Tx) -> bool:
        """Whether the transaction pays the wallet or spends its coins (as far as they are still known)."""
        return any(output.script_pubkey in self.keys for output in tx.outputs)


def _script_for(kind: str, pubkey: bytes) -> bytes:
    if kind == "legacy":
        return scripts.p2pkh(hash160(pubkey))
    if kind == "p2sh-segwit":
        return scripts.p2sh(hash160(scripts.p2wpkh(pubkey)))
    if kind == "bech32m":
        return scripts.p2tr(taproot_output_key(xonly(pubkey)))
    return scripts.p2wpkh(pubkey)


class Faucet:
    """The loaded wallets. The nameless one gives way to the first that a user creates, unless it was used before."""

    def __init__(self, store: Store, mempool: Mempool) -> None:
        self.store = store
        self.mempool = mempool
        self.loaded: dict[str, Wallet] = {}
        for name, seed in store.db.execute("SELECT name, seed FROM wallets WHERE loaded = 1").fetchall():
            self.loaded[name] = Wallet(name, seed, store, mempool)

    def _rows(self) -> dict[str, bytes]:
        return dict(self.store.db.execute("SELECT name, seed FROM wallets").fetchall())

    def names(self) -> Sequence[str]:
        """All wallets on disk."""
        return sorted(self._rows())

    def get(self, name: str | None) -> Wallet:
        """The wallet that a request means: of that name, or the only one. Raises RpcError."""
        if name is not None:
            if name == "" and "" not in self._rows():
                return self.create("")
            if name not in self.loaded:
                raise RpcError(WALLET_NOT_FOUND, "Requested wallet does not exist or is not loaded")
            return self.loaded[name]
        if "" in self.loaded:
            return self.loaded[""]
        if len(self.loaded) == 1:
            return next(iter(self.loaded.values()))
        if self.loaded:
            raise RpcError(
                WALLET_NOT_SPECIFIED,
                "Multiple wallets are loaded. Please select which wallet to use by requesting the RPC through the"
                " /wallet/<walletname> URI path.",
            )
        if self._rows():
            raise RpcError(
                WALLET_NOT_FOUND,
                "No wallet is loaded. Load a wallet using loadwallet or create a new one with createwallet."
                " (Note: A default wallet is no longer automatically created)",
            )
        return self.create("")

    def create(self, name: str) -> Wallet:
        """A new wallet with fresh keys. Raises RpcError if there is one of that name."""
        if name in self._rows():
            raise RpcError(
                WALLET_ALREADY_EXISTS,
                f"Wallet file verification failed. Failed to create database path '{name}'. Database already exists.",
            )
        seed = secrets.token_bytes(32)
        with self.store.transaction():
            self.store.db.execute("INSERT INTO wallets VALUES (?, ?, 1)", (name, seed))
        wallet = self.loaded[name] = Wallet(name, seed, self.store, self.mempool)
        return wallet

    def load(self, name: str) -> Wallet:
        """Load a wallet from disk. Raises RpcError."""
        if name in self.loaded:
            raise RpcError(WALLET_ALREADY_LOADED, f'Wallet "{name}" is already loaded.')
        seed = self._rows().get(name)
        if seed is None:
            raise RpcError(
                WALLET_NOT_FOUND,
                f"Wallet file verification failed. Failed to load database path '{name}'. Path does not exist.",
            )
        self._set_loaded(name, True)
        wallet = self.loaded[name] = Wallet(name, seed, self.store, self.mempool)
        return wallet

    def unload(self, name: str) -> None:
        """Forget a wallet until it is loaded again. Raises RpcError."""
        if name not in self.loaded:
            raise RpcError(WALLET_NOT_FOUND, "Requested wallet does not exist or is not loaded")
        self._set_loaded(name, False)
        del self.loaded[name]

    def _set_loaded(self, name: str, loaded: bool) -> None:
        with self.store.transaction():
            self.store.db.execute("UPDATE wallets SET loaded = ? WHERE name = ?", (loaded, name))
