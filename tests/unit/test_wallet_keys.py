"""Seeds, derivation and signatures, against BIP 39, 84 and 86's examples, embit, and Bitcoin Core's script engine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from embit import bip32
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wallet_fakes import script_ok
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import MAINNET, REGTEST, address_of
from wallet.bitcoin.sighash import SighashCache
from wallet.keys import CHANGE, EXTERNAL, AddressKind, KeyPath, Keys, Seed, SeedError
from wallet.seedfile import SeedFileError, is_encrypted, read_seed, write_seed

ABANDON = "abandon " * 11 + "about"


def test_bip39_example() -> None:
    seed = Seed.create(bytes(16), "TREZOR")
    assert seed.mnemonic == ABANDON
    assert seed.to_bytes().hex().startswith("c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e5349553")
    long = Seed.create(bytes.fromhex("68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c"))
    assert long.mnemonic.split()[:4] == ["hamster", "diagram", "private", "dutch"]
    assert len(long.words) == 24
    assert "abandon" not in repr(seed), "words do not get into logs"


@pytest.mark.parametrize("length", [0, 15, 20, 33])
def test_entropy_must_be_of_a_known_size(length: int) -> None:
    with pytest.raises(SeedError, match="16 bytes"):
        Seed.create(bytes(length))


@given(st.binary(min_size=32, max_size=32), st.text(max_size=5))
@settings(max_examples=10, deadline=None)
def test_words_restore_the_seed(entropy: bytes, passphrase: str) -> None:
    seed = Seed.create(entropy, passphrase)
    assert Seed.restore("  \n".join(seed.words).upper(), passphrase) == seed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ABANDON.replace("about", "abouut"), r"word 12, 'abouut', is not in the BIP 39 list \(did you mean about"),
        (ABANDON.replace("abandon", "abndon", 1), r"word 1, 'abndon', .*abandon"),
        (ABANDON.replace("about", "zzzzz"), r"word 12, 'zzzzz', is not in the BIP 39 list$"),
        ("abandon " * 12, "checksum is wrong"),
        ("abandon " * 11, "12, 15, 18, 21 or 24 words; these are 11"),
        ("", "these are 0"),
    ],
)
def test_wrong_words_are_named(text: str, sentence: str) -> None:
    with pytest.raises(SeedError, match=sentence):
        Seed.restore(text)


def test_bip84_and_bip86_examples() -> None:
    keys = Keys.from_seed(Seed.restore(ABANDON), MAINNET)
    expected = {
        KeyPath(AddressKind.P2WPKH, EXTERNAL, 0): "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu",
        KeyPath(AddressKind.P2WPKH, EXTERNAL, 1): "bc1qnjg0jd8228aq7egyzacy8cys3knf9xvrerkf9g",
        KeyPath(AddressKind.P2WPKH, CHANGE, 0): "bc1q8c6fshw2dlwun7ekn9qwf37cu2rn755upcp6el",
        KeyPath(AddressKind.P2TR, EXTERNAL, 0): "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr",
        KeyPath(AddressKind.P2TR, EXTERNAL, 1): "bc1p4qhjn9zdvkux4e44uhx8tc55attvtyu358kutcqkudyccelu0was9fqzwh",
        KeyPath(AddressKind.P2TR, CHANGE, 0): "bc1p3qkhfews2uk44qtvauqyr2ttdsw7svhkl9nkm9s9c3x4ax5h60wqwruhk7",
    }
    assert {path: address_of(keys.script(path), MAINNET) for path in expected} == expected
    assert keys.fingerprint.hex() == "73c5da0a"
    assert keys.account_xpub(AddressKind.P2TR) == (
        "xpub6BgBgsespWvERF3LHQu6CnqdvfEvtMcQjYrcRzx53QJjSxarj2afYWcLteoGVky7D3UKDP9QyrLprQ3VCECoY49yfdDEHGCtMMj92pReUsQ"
    )
    assert keys.descriptor(AddressKind.P2WPKH).startswith(
        "wpkh([73c5da0a/84h/0h/0h]xpub6CatWdiZiodmUeTDp8LT5or8nmbKNcuy"
    )


@given(
    st.binary(min_size=64, max_size=64),
    st.sampled_from(AddressKind),
    st.sampled_from([EXTERNAL, CHANGE]),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=25, deadline=None)
def test_derivation_agrees_with_embit(seed: bytes, kind: AddressKind, chain: int, child: int) -> None:
    keys, path = Keys(seed, REGTEST), KeyPath(kind, chain, child)
    expected = bip32.HDKey.from_seed(seed).derive(keys.derivation(path))
    assert keys.secret(path) == expected.secret
    assert keys.pubkey(path) == expected.sec()


def test_lightning_root_differs_by_network_and_seed() -> None:
    seed = Seed.restore(ABANDON)
    roots = {Keys.from_seed(s, n).lightning_root() for s in (seed, Seed.create(bytes(32))) for n in (MAINNET, REGTEST)}
    assert len(roots) == 4
    expected = bip32.HDKey.from_seed(seed.to_bytes()).derive("m/9735h/0h/0h").secret
    assert Keys.from_seed(seed, MAINNET).lightning_root() == expected


@given(st.lists(st.tuples(st.sampled_from(AddressKind), st.integers(0, 50)), min_size=1, max_size=4, unique=True))
@settings(max_examples=10, deadline=None)
def test_witnesses_satisfy_bitcoin_core(owners: list[tuple[AddressKind, int]]) -> None:
    keys = Keys.from_seed(Seed.restore(ABANDON), REGTEST)
    paths = [KeyPath(kind, EXTERNAL, child) for kind, child in owners]
    spent = [TxOut(10_000 + place, keys.script(path)) for place, path in enumerate(paths)]
    inputs = tuple(TxIn(OutPoint(bytes([place]) * 32, place)) for place in range(len(paths)))
    tx = Tx(2, inputs, (TxOut(5_000, keys.script(paths[0])),), 7)
    cache = SighashCache(tx, spent)
    for place, path in enumerate(paths):
        tx = tx.with_witness(place, keys.witness(tx, place, path, spent, cache))
    assert all(script_ok(tx, place, spent) for place in range(len(paths)))
    assert not script_ok(tx.replace(locktime=8), 0, spent)
    weight = tx.weight() - (4 * (8 + 1 + 1 + 8 + 1 + len(keys.script(paths[0]))) + 2)
    assert weight <= sum(path.kind.input_weight for path in paths) <= weight + len(paths)


def test_seed_file(tmp_path: Path) -> None:
    path, seed = tmp_path / "seed", Seed.create(os.urandom(32), "a passphrase")
    write_seed(path, seed)
    assert read_seed(path) == seed
    assert not is_encrypted(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed"]
    with pytest.raises(SeedFileError, match="never overwritten"):
        write_seed(path, Seed.create(bytes(16)))
    assert read_seed(path) == seed
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed"]


def test_seed_file_after_a_crash_while_writing(tmp_path: Path) -> None:
    (tmp_path / "seed.new").write_text("half a fi")
    write_seed(tmp_path / "seed", Seed.create(bytes(16)))
    assert read_seed(tmp_path / "seed").mnemonic == ABANDON


def test_encrypted_seed_file(tmp_path: Path) -> None:
    path, seed = tmp_path / "seed", Seed.create(bytes(32))
    write_seed(path, seed, "secret")
    assert is_encrypted(path)
    assert b"abandon" not in path.read_bytes()
    assert read_seed(path, "secret") == seed
    with pytest.raises(SeedFileError, match="its password is needed"):
        read_seed(path)
    with pytest.raises(SeedFileError, match=r"password .* is wrong"):
        read_seed(path, "Secret")


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", b'{"form":"plain","mnemonic":"abandon"}', b"\xff\xfe"])
def test_damaged_seed_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seed").write_bytes(content)
    with pytest.raises(SeedFileError, match="damaged: restore it"):
        read_seed(tmp_path / "seed")


def test_missing_seed_file(tmp_path: Path) -> None:
    with pytest.raises(SeedFileError, match="cannot read the seed"):
        read_seed(tmp_path / "seed")
    with pytest.raises(SeedFileError, match="cannot write the seed"):
        write_seed(tmp_path / "nowhere" / "seed", Seed.create(bytes(16)))
