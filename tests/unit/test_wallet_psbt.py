"""PSBTs: what another signer gets, what it gives back, and what is refused."""

from __future__ import annotations

import base64

import pytest
from embit.bip32 import HDKey
from embit.psbt import PSBT
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wallet_fakes import script_ok
from tests.wallet_world import STRANGER, World
from wallet import psbt
from wallet.bitcoin import Tx, TxIn, TxOut
from wallet.errors import PsbtError
from wallet.keys import Seed
from wallet.spending import FundedTx


@pytest.fixture
async def world() -> World:
    world = World()
    await world.start()
    await world.receive(50_000, 60_000)
    await world.receive(70_000, kind="p2wpkh")
    return world


async def unsigned(world: World) -> tuple[FundedTx, str]:
    funded = await world.wallet.create_tx([TxOut(150_000, STRANGER)], 5_000, sign=False)
    assert all(txin.witness == () for txin in funded.tx.inputs)
    return funded, world.wallet.to_psbt(funded)


async def test_another_signer_with_our_keys(world: World) -> None:
    """embit signs from the derivations alone, as a hardware wallet would."""
    funded, text = await unsigned(world)
    foreign = PSBT.from_string(text)
    assert foreign.fee() == funded.fee_sat
    root = HDKey.from_seed(Seed.create(bytes(16)).to_bytes())
    assert foreign.sign_with(root) == 3
    tx = psbt.complete(psbt.decode(foreign.to_string()))
    assert tx.txid() == funded.txid
    assert all(script_ok(tx, place, funded.spent) for place in range(3))
    world.store.commit_now(world.wallet.record(funded, tx=tx))
    result = await world.mempool.broadcast(tx)
    assert result.ok


async def test_we_sign(world: World) -> None:
    funded, text = await unsigned(world)
    with pytest.raises(PsbtError, match="input 0 of the PSBT is not signed"):
        psbt.complete(psbt.decode(text))
    signed, places = world.wallet.sign_psbt(text)
    assert places == [0, 1, 2]
    tx = psbt.complete(psbt.decode(signed))
    assert tx == world.wallet.sign(funded.tx, funded.spent)
    assert psbt.complete(psbt.decode(base64.b64decode(signed).hex())) == tx, "hex is understood as well"


async def test_change_is_marked_as_ours(world: World) -> None:
    funded, text = await unsigned(world)
    assert funded.change_vout is not None
    outputs = PSBT.from_string(text).outputs
    marked = [place for place, output in enumerate(outputs) if output.taproot_bip32_derivations]
    assert marked == [funded.change_vout]


async def test_only_ours_is_signed_in_a_shared_transaction(world: World) -> None:
    """Two wallets fund one transaction: each signs its own inputs."""
    other = World(Seed.create(bytes(range(16))))
    await other.start()
    await other.receive(80_000)
    ours, theirs = world.wallet.coins()[0], other.wallet.coins()[0]
    tx = Tx(2, (TxIn(ours.outpoint, sequence=0), TxIn(theirs.outpoint)), (TxOut(120_000, STRANGER),), 0)
    spent = [
        TxOut(c.value_sat, w.wallet.transaction(c.outpoint.txid).tx.outputs[c.outpoint.vout].script_pubkey)
        for c, w in ((ours, world), (theirs, other))
    ]
    text = psbt.encode(tx, [psbt.InputInfo(txout, None, None) for txout in spent], [None], world.keys)
    half, places = world.wallet.sign_psbt(text)
    assert places == [0]
    with pytest.raises(PsbtError, match="input 1"):
        psbt.complete(psbt.decode(half))
    full, places = other.wallet.sign_psbt(half)
    assert places == [1]
    complete = psbt.complete(psbt.decode(full))
    assert complete.inputs[0].sequence == 0
    assert all(script_ok(complete, place, spent) for place in range(2))


async def test_wrong_signatures_are_named(world: World) -> None:
    funded, text = await unsigned(world)
    signed, _ = world.wallet.sign_psbt(text)
    other = funded.tx.replace(locktime=0)
    spoiled = psbt.decode(signed)
    with pytest.raises(PsbtError, match=r"the signature of input [0-2] is wrong"):
        psbt.complete(spoiled._replace(tx=other))


async def test_a_lie_about_our_amounts_is_not_signed(world: World) -> None:
    """A P2WPKH signature does not cover other inputs' amounts: what the PSBT claims of ours is not believed."""
    coin = next(coin for coin in world.wallet.coins() if coin.kind == "p2wpkh")
    script = world.wallet.transaction(coin.outpoint.txid).tx.outputs[coin.outpoint.vout].script_pubkey
    tx = Tx(2, (TxIn(coin.outpoint),), (TxOut(1_000, STRANGER),), 0)
    lie = psbt.InputInfo(TxOut(2_000, script), None, None)
    signed, _ = world.wallet.sign_psbt(psbt.encode(tx, [lie], [None], world.keys))
    with pytest.raises(PsbtError, match="signature of input 0 is wrong"):
        psbt.complete(psbt.decode(signed))


async def test_another_signature_type_is_not_signed(world: World) -> None:
    _, text = await unsigned(world)
    decoded = psbt.decode(text)
    decoded.psbt.inputs[1].sighash_type = 0x83
    with pytest.raises(PsbtError, match="only ALL is signed"):
        world.wallet.sign_psbt(decoded.psbt.to_base64())


async def test_a_previous_transaction_that_does_not_match(world: World) -> None:
    coin = next(coin for coin in world.wallet.coins() if coin.kind == "p2wpkh")
    made_by = world.wallet.transaction(coin.outpoint.txid).tx
    tx = Tx(2, (TxIn(coin.outpoint),), (TxOut(1_000, STRANGER),), 0)
    info = psbt.InputInfo(made_by.outputs[coin.outpoint.vout], None, made_by.replace(locktime=5))
    with pytest.raises(PsbtError, match="no readable PSBT"):
        psbt.decode(psbt.encode(tx, [info], [None], world.keys))
    contradiction = psbt.InputInfo(TxOut(1, made_by.outputs[coin.outpoint.vout].script_pubkey), None, made_by)
    with pytest.raises(PsbtError, match="contradicts itself"):
        psbt.decode(psbt.encode(tx, [contradiction], [None], world.keys))


UNSIGNED = "70736274ff0100520200000001" + "11" * 32 + "0000000000fdffffff01e803000000000000160014" + "22" * 20
TAP_PATH_OF_SHORT_KEY = UNSIGNED + "00000000" + "00" + "0216" + "33" + "05" + "00" * 5


@pytest.mark.parametrize(
    "text",
    ["", "cHNidP8=", "not base64!", "70736274ff", "cHNidP8BAAoCAAAAAAAAAAAAAA", TAP_PATH_OF_SHORT_KEY],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(PsbtError, match="no readable PSBT"):
        psbt.decode(text)


MANY = "ff" + "ff" * 7 + "00"
XONLY = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (UNSIGNED + "00000000" + "00" + "0101" + "1f" + "ff" * 8 + "160014" + "22" * 20 + "0000", "more than there is"),
        (UNSIGNED + "00000000" + "00" + "2116" + XONLY + "0d" + MANY + "00" * 4, "fewer leaf hashes"),
        (UNSIGNED + "00000000" + "00" + "00" + "2107" + XONLY + "0d" + MANY + "00" * 4, "fewer leaf hashes"),
        ("70736274ff" + "01fb" + "0402000000" + "0104" + "09" + MANY + "00", "version 2"),
        ("70736274ff" + "0105" + "09" + MANY + "00", "version 2"),
        (
            "70736274ff" + "01fb" + "0402000000" + "0102" + "0402000000" + "0104" + "0101" + "0105" + "0101" + "00",
            "version 2",
        ),
    ],
)
def test_numbers_that_cannot_be(text: str, sentence: str) -> None:
    """Refused at once: whoever believed some of them would fill the memory."""
    with pytest.raises(PsbtError, match=sentence):
        psbt.decode(text)


@pytest.mark.parametrize("key", ["0e", "0f", "10", "11", "12"])
def test_an_input_of_version_0_says_only_in_the_transaction_what_it_spends(key: str) -> None:
    """BIP 370: such a field "must be excluded" in version 0; the library below takes it for the input's."""
    text = UNSIGNED + "00000000" + "00" + "01" + key + "04" + "01000000" + "0000"
    with pytest.raises(PsbtError, match="version 2"):
        psbt.decode(text)


@pytest.mark.parametrize("key", ["03", "04"])
def test_an_output_of_version_0_is_as_the_transaction_has_it(key: str) -> None:
    text = UNSIGNED + "00000000" + "00" + "00" + "01" + key + "08" + "0100000000000000" + "00"
    with pytest.raises(PsbtError, match="version 2"):
        psbt.decode(text)


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_no_bytes_escape_as_another_error(noise: bytes, cut: int) -> None:
    whole = bytes.fromhex(UNSIGNED)
    for raw in (b"psbt\xff" + noise, (whole + noise)[:cut], whole[:40] + noise + whole[40:]):
        try:
            decoded = psbt.decode(base64.b64encode(raw).decode())
        except PsbtError:
            continue
        with pytest.raises(PsbtError):
            psbt.complete(decoded)
