"""What people paste: invoices, addresses, short channel ids, PSBTs; and layer 1's transactions and blocks."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from hashlib import sha256

from embit import bech32
from embit.psbt import PSBT
from embit.transaction import Transaction

from channeld.bolt import invoice as invoices
from channeld.bolt.invoice import InvoiceError, decode_invoice, encode_invoice
from channeld.bolt.primitives import format_short_channel_id, parse_short_channel_id
from tests.fuzz.target import Reader, target
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import BY_NAME, AddressError, address_of, script_of
from wallet.bitcoin.encoding import SerializationError
from wallet.bitcoin.secp import pubkey_of, sign_recoverable
from wallet.bitcoin.tx import Block, BlockHeader
from wallet.errors import PsbtError
from wallet.keys import CHANGE, EXTERNAL, AddressKind, KeyPath, Keys
from wallet.psbt import Decoded, InputInfo, complete, decode, encode, sign

SECRET = sha256(b"payee").digest()
REGTEST = BY_NAME["regtest"]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _invoice_seeds() -> Iterator[bytes]:
    yield b"lnbcrt1"
    yield (
        b"lnbc1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rq"
        b"wzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq9qrsgq357wnc5r2ueh7ck6q93dj32dlqnls087fx"
        b"dwk8qakdyafkq3yap9us6v52vjjsrvywa6rt52cm9r9zqt8r2t7mlcwspyetp5h2tztugp9lfyql"
    )


@target("invoice_text", _invoice_seeds, 3000)
def invoice_text(data: bytes) -> None:
    """Whatever is pasted."""
    try:
        found = decode_invoice(_text(data))
    except InvoiceError as error:
        assert str(error)
        return
    assert found.payment_hash
    assert found.fallback_addresses is not None


@target("invoice_fields", lambda: [bytes((1, 52)) + b"\x01\x14" + bytes(52) + b"\x10\x14" + bytes(52)], 1200)
def invoice_fields(data: bytes) -> None:
    """Any tagged fields, with a right checksum and signature."""
    reader = Reader(data)
    hrp = "lnbcrt" + ("", "1m", "25u", "10p", "9999999999", "0m")[reader.below(6)]
    symbols = bytes(byte & 31 for byte in reader.rest()).rjust(7, b"\x00")
    digest = invoices._digest(hrp, symbols)
    signed = symbols + invoices._from_bytes(sign_recoverable(SECRET, digest))
    text = bech32.bech32_encode(bech32.Encoding.BECH32, hrp, list(signed))
    try:
        found = decode_invoice(text, REGTEST)
    except InvoiceError as error:
        assert str(error)
        return
    assert found.payee == pubkey_of(SECRET) or found.payee_is_explicit
    assert found.amount_msat is None or found.amount_msat > 0
    if not found.unknown_fields and not found.payee_is_explicit:
        again = decode_invoice(encode_invoice(found, SECRET), REGTEST)
        assert again.payment_hash == found.payment_hash
        assert again.features == found.features
        assert again.routing_hints == found.routing_hints


@target(
    "address", lambda: [b"bcrt1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqdku202", b"2N", b"1BoatSLRHtKNngkdXEeobR76b53LETtpyT"]
)
def address(data: bytes) -> None:
    """Layer-1 addresses."""
    for network in BY_NAME.values():
        try:
            script = script_of(_text(data), network)
        except AddressError:
            continue
        shown = address_of(script, network)
        assert shown is not None
        assert script_of(shown, network) == script


@target("short_channel_id", lambda: [b"1x2x3", b"16777215x16777215x65535", b"1x2"])
def short_channel_id(data: bytes) -> None:
    """`123x4x5`."""
    try:
        value = parse_short_channel_id(_text(data))
    except ValueError:
        return
    assert parse_short_channel_id(format_short_channel_id(value)) == value


KEYS = Keys(b"\x07" * 64, REGTEST)
OUTPOINTS = [OutPoint(sha256(b"ours %d" % number).digest(), number) for number in range(2)]
PATHS = [KeyPath(AddressKind.P2TR, EXTERNAL, 0), KeyPath(AddressKind.P2WPKH, CHANGE, 1)]
OURS = {outpoint: (TxOut(5000, KEYS.script(path)), path) for outpoint, path in zip(OUTPOINTS, PATHS, strict=True)}


def _psbt_seeds() -> Iterator[bytes]:
    spent = OutPoint(sha256(b"coin").digest(), 0)
    tx = Tx(2, (TxIn(spent, b"", 0),), (TxOut(1000, b"\x00\x14" + bytes(20)), TxOut(5, b"\x51\x20" + bytes(32))), 0)
    psbt = PSBT(Transaction.parse(tx.serialize()), unknown={})
    yield psbt.serialize()
    psbt.inputs[0].witness_utxo = psbt.tx.vout[0]
    psbt.inputs[0].unknown = {b"\x13": bytes(64)}  # embit shares its empty one among all
    yield psbt.serialize()
    yield psbt.to_base64().encode()
    tx = Tx(2, tuple(TxIn(outpoint) for outpoint in OURS), (TxOut(1000, OURS[OUTPOINTS[0]][0].script_pubkey),), 0)
    inputs = [InputInfo(txout, path, None) for txout, path in OURS.values()]
    text = encode(tx, inputs, [OURS[OUTPOINTS[0]][1]], KEYS)
    yield base64.b64decode(text)
    yield base64.b64decode(sign(decode(text), KEYS, OURS.get)[0])


@target("psbt", _psbt_seeds, 6000)
def psbt(data: bytes) -> None:
    """PSBTs handed in: a sentence, or something that we sign as far as it is ours, and that can be completed or not."""
    for text in (_text(data), base64.b64encode(data).decode()):
        try:
            decoded = decode(text)
        except PsbtError as error:
            assert str(error)
            continue
        for way in (complete, _sign):
            try:
                way(decoded)
            except PsbtError as error:
                assert str(error)


def _sign(decoded: Decoded) -> None:
    """What we have signed can be read, and is the same transaction."""
    text, places = sign(decoded, KEYS, OURS.get)
    again = decode(text)
    assert again.tx == decoded.tx
    assert places == [place for place, txin in enumerate(again.tx.inputs) if txin.outpoint in OURS]


@target("transaction", lambda: [bytes.fromhex("0200000000010100" + "00" * 60)], 4096)
def transaction(data: bytes) -> None:
    """Transactions, headers, blocks: read and written back."""
    try:
        assert Tx.parse(data).serialize() == data
    except SerializationError:
        pass
    try:
        assert Block.parse(data).serialize() == data
    except SerializationError:
        pass
    try:
        assert BlockHeader.parse(data).serialize() == data
    except SerializationError:
        pass
