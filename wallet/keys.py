"""A wallet's keys: BIP 39 words, the BIP 32 tree below them, and signatures for on-chain inputs.

Accounts: BIP 84 (P2WPKH, m/84h/coinh/0h) and BIP 86 (P2TR key path, m/86h/coinh/0h), each with a chain of addresses
that are given out (0) and one for change (1). A Lightning node's secrets come from `Keys.lightning_root`.
"""

from __future__ import annotations

import difflib
import hmac
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from embit import bip32, bip39
from embit.networks import NETWORKS
from embit.wordlists.bip39 import WORDLIST

from wallet.bitcoin import Tx, TxOut, hash160, secp
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import Network
from wallet.bitcoin.sighash import SIGHASH_ALL, SighashCache, segwit_v0_sighash, taproot_sighash

WORD_COUNTS: Final = (12, 15, 18, 21, 24)
EXTERNAL: Final = 0
CHANGE: Final = 1
LIGHTNING_PURPOSE: Final = 9735
_HARDENED: Final = 0x8000_0000
_EMBIT_NETWORKS = {"mainnet": "main", "testnet": "test", "signet": "signet", "regtest": "regtest"}


class SeedError(ValueError):
    """Words that are no seed; the text names the wrong word, or says what else is wrong."""


@dataclass(frozen=True)
class Seed:
    """BIP 39 words and the optional passphrase, which is part of the secret: another one is another wallet."""

    words: tuple[str, ...] = field(repr=False)
    passphrase: str = field(default="", repr=False)

    @classmethod
    def create(cls, entropy: bytes, passphrase: str = "") -> Seed:
        """From 16 bytes of entropy (12 words) or 32 (24 words). Raises SeedError for another length."""
        if len(entropy) not in (16, 32):
            raise SeedError("a seed is made of 16 bytes of entropy (12 words) or 32 (24 words)")
        return cls(tuple(bip39.mnemonic_from_bytes(entropy).split()), _normalize(passphrase))

    @classmethod
    def restore(cls, text: str | Sequence[str], passphrase: str = "") -> Seed:
        """From words as noted. Raises SeedError with a sentence that names what is wrong."""
        words = text.split() if isinstance(text, str) else [word.strip() for word in text]
        words = [_normalize(word).lower() for word in words]
        wrong = [(place, word) for place, word in enumerate(words, 1) if word not in _INDEX]
        if wrong:
            raise SeedError("; ".join(_about_wrong_word(place, word) for place, word in wrong))
        if len(words) not in WORD_COUNTS:
            raise SeedError(f"a seed has 12, 15, 18, 21 or 24 words; these are {len(words)}")
        try:
            bip39.mnemonic_to_bytes(" ".join(words))
        except ValueError as error:
            raise SeedError(
                "the words' checksum is wrong: each is in the BIP 39 list, but one is not the word that was noted, "
                "or two have changed places"
            ) from error
        return cls(tuple(words), _normalize(passphrase))

    @property
    def mnemonic(self) -> str:
        """The words, separated by spaces."""
        return " ".join(self.words)

    def to_bytes(self) -> bytes:
        """BIP 39's 64 bytes, from which BIP 32's tree grows."""
        seed: bytes = bip39.mnemonic_to_seed(self.mnemonic, self.passphrase)
        return seed


_INDEX = frozenset(WORDLIST)


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKD", text)


def _about_wrong_word(place: int, word: str) -> str:
    near = [candidate for candidate in WORDLIST if len(word) >= 3 and candidate.startswith(word[:4])][:3]
    near += [match for match in difflib.get_close_matches(word, WORDLIST, n=3, cutoff=0.7) if match not in near]
    hint = f" (did you mean {' or '.join(near[:4])}?)" if near else ""
    return f"word {place}, {word!r}, is not in the BIP 39 list{hint}"


class AddressKind(StrEnum):
    """The kinds of output that the wallet owns."""

    P2TR = "p2tr"
    P2WPKH = "p2wpkh"

    @property
    def purpose(self) -> int:
        """BIP 43's first level."""
        return 86 if self is AddressKind.P2TR else 84

    @property
    def input_weight(self) -> int:
        """Weight units of an input that spends such an output, the greatest possible (signatures have low R)."""
        return 4 * 41 + (1 + 1 + 64 if self is AddressKind.P2TR else 1 + 1 + 71 + 1 + 33)

    @property
    def output_weight(self) -> int:
        """Weight units of such an output."""
        return 4 * (8 + 1 + (34 if self is AddressKind.P2TR else 22))


class KeyPath(NamedTuple):
    """A key below an account: `chain` is EXTERNAL or CHANGE."""

    kind: AddressKind
    chain: int
    child: int


class _Node(NamedTuple):
    secret: bytes
    pubkey: bytes
    chain_code: bytes


class Keys:
    """The key tree of one seed on one network. Chain nodes are derived once; children are remembered."""

    def __init__(self, seed: bytes, network: Network) -> None:
        self.network = network
        versions = NETWORKS[_EMBIT_NETWORKS[network.name]]
        self._root = bip32.HDKey.from_seed(seed, version=versions["xprv"])
        self._accounts: dict[AddressKind, Any] = {}
        self._chains: dict[tuple[AddressKind, int], _Node] = {}
        self._pubkeys: dict[KeyPath, bytes] = {}
        self._scripts: dict[KeyPath, bytes] = {}

    @classmethod
    def from_seed(cls, seed: Seed, network: Network) -> Keys:
        """The tree of BIP 39 words."""
        return cls(seed.to_bytes(), network)

    @property
    def fingerprint(self) -> bytes:
        """BIP 32's fingerprint of the root key, 4 bytes."""
        value: bytes = self._root.my_fingerprint
        return value

    def account_path(self, kind: AddressKind) -> list[int]:
        """purpose / coin type / account, hardened."""
        return [_HARDENED + step for step in (kind.purpose, self.network.coin_type, 0)]

    def derivation(self, path: KeyPath) -> list[int]:
        """The whole path from the root, as BIP 32 numbers."""
        return [*self.account_path(path.kind), path.chain, path.child]

    def _account(self, kind: AddressKind) -> Any:
        account = self._accounts.get(kind)
        if account is None:
            account = self._accounts[kind] = self._root.derive(self.account_path(kind))
        return account

    def account_xpub(self, kind: AddressKind) -> str:
        """The account's extended public key."""
        return str(self._account(kind).to_public().to_base58())

    def descriptor(self, kind: AddressKind) -> str:
        """The account as an output descriptor, without checksum: for watching it with other software."""
        function = "tr" if kind is AddressKind.P2TR else "wpkh"
        origin = "/".join(f"{step - _HARDENED}h" for step in self.account_path(kind))
        return f"{function}([{self.fingerprint.hex()}/{origin}]{self.account_xpub(kind)}/<0;1>/*)"

    def lightning_root(self) -> bytes:
        """32 secret bytes for the Lightning node on top: the private key at m/9735h/coin_typeh/0h.

        Node key and channel keys are derived from it; nothing below it is used on chain by this wallet.
        """
        path = [_HARDENED + step for step in (LIGHTNING_PURPOSE, self.network.coin_type, 0)]
        secret: bytes = self._root.derive(path).secret
        return secret

    def _chain(self, kind: AddressKind, chain: int) -> _Node:
        node = self._chains.get((kind, chain))
        if node is None:
            derived = self._account(kind).child(chain)
            node = self._chains[kind, chain] = _Node(derived.secret, secp.pubkey_of(derived.secret), derived.chain_code)
        return node

    def _tweak(self, path: KeyPath) -> tuple[_Node, bytes]:
        """BIP 32's non-hardened child step, without embit's objects: (parent, the summand)."""
        node = self._chain(path.kind, path.chain)
        digest = hmac.digest(node.chain_code, node.pubkey + path.child.to_bytes(4, "big"), "sha512")
        return node, digest[:32]

    def pubkey(self, path: KeyPath) -> bytes:
        """The compressed public key at `path` (for P2TR: the internal key with its parity)."""
        known = self._pubkeys.get(path)
        if known is None:
            node, tweak = self._tweak(path)
            known = self._pubkeys[path] = secp.point_add_scalar(node.pubkey, tweak)
        return known

    def secret(self, path: KeyPath) -> bytes:
        """The secret key at `path` (for P2TR before the taproot tweak)."""
        node, tweak = self._tweak(path)
        return secp.scalar_add(node.secret, tweak)

    def script(self, path: KeyPath) -> bytes:
        """The output script at `path`."""
        known = self._scripts.get(path)
        if known is None:
            pubkey = self.pubkey(path)
            if path.kind is AddressKind.P2TR:
                known = scripts.p2tr(secp.taproot_output_key(secp.xonly(pubkey)))
            else:
                known = scripts.p2wpkh(pubkey)
            self._scripts[path] = known
        return known

    def witness(
        self, tx: Tx, index: int, path: KeyPath, spent: Sequence[TxOut], cache: SighashCache
    ) -> tuple[bytes, ...]:
        """The witness of input `index`, which spends `path`'s output; `spent` are all inputs' outputs, in order."""
        secret = self.secret(path)
        if path.kind is AddressKind.P2TR:
            digest = taproot_sighash(tx, index, spent, cache=cache)
            return (secp.sign_schnorr(secp.taproot_tweak_secret(secret), digest),)
        pubkey = self.pubkey(path)
        code = scripts.p2wpkh_script_code(hash160(pubkey))
        digest = segwit_v0_sighash(tx, index, code, spent[index].value_sat, SIGHASH_ALL, cache)
        return (secp.compact_to_der(secp.sign_low_r(secret, digest)) + bytes((SIGHASH_ALL,)), pubkey)
