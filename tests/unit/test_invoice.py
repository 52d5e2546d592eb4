"""BOLT 11 invoices: the document's examples, round trips, and everything that can be wrong with one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from embit import bech32
from hypothesis import given, settings
from hypothesis import strategies as st

from channeld.bolt import invoice as module
from channeld.bolt.features import Feature
from channeld.bolt.invoice import (
    DEFAULT_FEATURES,
    SUPPORTED_FEATURES,
    Invoice,
    InvoiceError,
    RoutingHop,
    decode_invoice,
    encode_invoice,
)
from wallet.bitcoin.address import MAINNET, REGTEST, SIGNET, TESTNET, script_of
from wallet.bitcoin.secp import CURVE_ORDER, pubkey_of, sign_recoverable

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "bolt11" / "invoices.json").read_text())
SECRET = bytes.fromhex(VECTORS["private_key"])
PAYEE = pubkey_of(SECRET)
HASH = bytes.fromhex("0001020304050607080900010203040506070809000102030405060708090102")
PAYMENT_SECRET = b"\x11" * 32
PLAIN = Invoice(
    network=MAINNET,
    payment_hash=HASH,
    payment_secret=PAYMENT_SECRET,
    payee=PAYEE,
    timestamp=1496314658,
    description="1 cup coffee",
)
CAKES = bytes.fromhex("3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1")
DONATION = "Please consider supporting this project"
HOPS = (
    RoutingHop(
        bytes.fromhex("029e03a901b85534ff1e92c43c74431f7ce72046060fcf7a95c37e148f78c77255"),
        66051 << 40 | 263430 << 16 | 1800,
        1,
        20,
        3,
    ),
    RoutingHop(
        bytes.fromhex("039e03a901b85534ff1e92c43c74431f7ce72046060fcf7a95c37e148f78c77255"),
        197637 << 40 | 395016 << 16 | 2314,
        2,
        30,
        4,
    ),
)
BLOCKSTREAM = RoutingHop(
    bytes.fromhex("03d06758583bb5154774a6eb221b1276c9e82d65bbaceca806d90e20c108f4b1c7"),
    589390 << 40 | 3312 << 16 | 1,
    1000,
    2500,
    40,
)
# What each valid example says, in the order of the document; `unknown_fields` are looked at apart.
EXPECTED: list[dict[str, Any]] = [
    {"description": DONATION},
    {"amount_msat": 250_000_000, "description": "1 cup coffee", "expiry_seconds": 60},
    {"amount_msat": 250_000_000, "description": "ナンセンス 1杯", "expiry_seconds": 60},
    {"amount_msat": 2_000_000_000, "description_hash": CAKES},
    {
        "amount_msat": 2_000_000_000,
        "description_hash": CAKES,
        "network": TESTNET,
        "fallback": "mk2QpYatsKicvFVuTAQLBryyccRXMUaGHP",
    },
    {
        "amount_msat": 2_000_000_000,
        "description_hash": CAKES,
        "fallback": "1RustyRX2oai4EYYDpQGWvEL62BBGqN9T",
        "routing_hints": (HOPS,),
    },
    {"amount_msat": 2_000_000_000, "description_hash": CAKES, "fallback": "3EktnHQD7RiAE6uzMj2ZifT9YgRrkSgzQX"},
    {
        "amount_msat": 2_000_000_000,
        "description_hash": CAKES,
        "fallback": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    },
    {
        "amount_msat": 2_000_000_000,
        "description_hash": CAKES,
        "fallback": "bc1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3qccfmv3",
    },
    {
        "amount_msat": 2_000_000_000,
        "description_hash": CAKES,
        "fallback": "bc1pptdvg0d2nj99568qn6ssdy4cygnwuxgw2ukmnwgwz7jpqjz2kszse2s3lm",
    },
    {
        "amount_msat": 967_878_534,
        "timestamp": 1572468703,
        "payment_hash": bytes.fromhex("462264ede7e14047e9b249da94fefc47f41f7d02ee9b091815a5506bc8abf75f"),
        "description": "Blockstream Store: 88.85 USD for Blockstream Ledger Nano S x 1, "
        '"Back In My Day" Sticker x 2, "I Got Lightning Working" Sticker x 2 and 1 more items',
        "expiry_seconds": 604800,
        "min_final_cltv_expiry_delta": 10,
        "routing_hints": ((BLOCKSTREAM,),),
    },
    {"amount_msat": 2_500_000_000, "description": "coffee beans", "features": frozenset((8, 14, 99))},
    {"amount_msat": 2_500_000_000, "description": "coffee beans", "features": frozenset((8, 14, 99))},
    {"amount_msat": 2_500_000_000, "description": "coffee beans", "features": frozenset((8, 14, 99))},
    {
        "amount_msat": 1_000_000_000,
        "description": "payment metadata inside",
        "payment_metadata": bytes.fromhex("01fafaf0"),
        "features": frozenset((8, 14, 48)),
    },
    {
        "description": DONATION,
        "payee": bytes.fromhex("02d0139ce7427d6dfffd26a326c18be754ef1e64672b42694ba5b23ef6e6e7803d"),
    },
]
REASONS = [
    "requires a feature that this node does not know (bit 100)",
    "checksum is wrong",
    "not a Lightning invoice",
    "not mixed",
    "signature is not valid",
    "too short",
    "'2500x' is not a number",
    "'2500000001p' is no whole number of millisatoshi",
    "no valid payment secret",
    "signature is not by the node it names, or not in its standard form",
]


# --- the document's examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "expected"),
    list(zip(VECTORS["valid"], EXPECTED, strict=True)),
    ids=[example["title"][:40] for example in VECTORS["valid"]],
)
def test_valid_examples(example: dict[str, Any], expected: dict[str, Any]) -> None:
    decoded = decode_invoice(example["invoice"])
    expected = {"description": None, **expected}
    fallback = expected.pop("fallback", None)
    if fallback:
        assert decoded.fallback_addresses == (fallback,)
        expected["fallback_scripts"] = (script_of(fallback, decoded.network),)
    assert dataclasses.replace(decoded, unknown_fields=()) == dataclasses.replace(PLAIN, **expected)
    again = encode_invoice(decoded, SECRET)
    assert decode_invoice(again) == dataclasses.replace(decoded, payee=PAYEE)
    assert decode_invoice(again.upper()) == decode_invoice(again)


@pytest.mark.parametrize("example", [one for one in VECTORS["valid"] if "signed_data" in one])
def test_signatures_of_the_examples(example: dict[str, Any]) -> None:
    hrp, symbols = module._split(example["invoice"])
    assert module._digest(hrp, symbols[:-104]).hex() == example["sha256"]
    signature = module._to_bytes(symbols[-104:])
    assert signature.hex() == example["signature"] + f"{example['recovery_flag']:02x}"
    if "high-S" not in example["title"]:
        assert sign_recoverable(SECRET, bytes.fromhex(example["sha256"])) == signature


def test_ignored_fields_are_kept() -> None:
    example = next(one for one in VECTORS["valid"] if "must be ignored" in one["title"])
    unknown = decode_invoice(example["invoice"]).unknown_fields
    assert [type_ for type_, _ in unknown] == [10, 9, 1, 1, 23, 23, 16, 16, 19, 19]


@pytest.mark.parametrize(
    ("example", "reason"),
    list(zip(VECTORS["invalid"], REASONS, strict=True)),
    ids=[example["title"][:40] for example in VECTORS["invalid"]],
)
def test_invalid_examples(example: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvoiceError) as caught:
        decode_invoice(example["invoice"])
    assert reason in str(caught.value)


# --- round trips --------------------------------------------------------------------------------------------------

ROUTING_HOPS = st.builds(
    RoutingHop,
    st.sampled_from([HOPS[0].pubkey, HOPS[1].pubkey, PAYEE]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
)
ADDRESSES = {
    MAINNET: ["1RustyRX2oai4EYYDpQGWvEL62BBGqN9T", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"],
    REGTEST: ["mk2QpYatsKicvFVuTAQLBryyccRXMUaGHP", "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"],
}


@st.composite
def invoices(draw: st.DrawFn) -> Invoice:
    network = draw(st.sampled_from(list(ADDRESSES)))
    hashed = draw(st.booleans())
    scripts = draw(st.lists(st.sampled_from(ADDRESSES[network]), max_size=2, unique=True))
    odd_features = draw(st.frozensets(st.integers(100, 200).map(lambda bit: bit | 1), max_size=3))
    return Invoice(
        network=network,
        payment_hash=draw(st.binary(min_size=32, max_size=32)),
        payment_secret=draw(st.binary(min_size=32, max_size=32)),
        payee=PAYEE,
        timestamp=draw(st.integers(0, 2**35 - 1)),
        amount_msat=draw(st.none() | st.integers(1, 21_000_000 * 10**11)),
        description=None if hashed else draw(st.text(max_size=150)),
        description_hash=draw(st.binary(min_size=32, max_size=32)) if hashed else None,
        payment_metadata=draw(st.none() | st.binary(max_size=100)),
        expiry_seconds=draw(st.integers(0, 2**32 - 1)),
        min_final_cltv_expiry_delta=draw(st.integers(0, 2**32 - 1)),
        features=draw(st.sampled_from([DEFAULT_FEATURES, frozenset((8, 14, 17, 49)), frozenset()])) | odd_features,
        fallback_scripts=tuple(script_of(address, network) for address in scripts),
        routing_hints=tuple(map(tuple, draw(st.lists(st.lists(ROUTING_HOPS, min_size=1, max_size=3), max_size=2)))),
        payee_is_explicit=draw(st.booleans()),
        unknown_fields=tuple(
            draw(
                st.lists(
                    st.tuples(st.sampled_from([0, 2, 31]), st.lists(st.integers(0, 31), max_size=9).map(bytes)),
                    max_size=2,
                )
            )
        ),
    )


@settings(max_examples=150, deadline=None)
@given(invoices())
def test_what_is_encoded_is_decoded(invoice: Invoice) -> None:
    text = encode_invoice(invoice, SECRET)
    assert decode_invoice(text, invoice.network) == invoice
    assert encode_invoice(invoice, lambda digest: sign_recoverable(SECRET, digest)) == text


@settings(max_examples=300, deadline=None)
@given(data=st.data(), source=st.sampled_from([example["invoice"].lower() for example in VECTORS["valid"]]))
def test_damaged_text_raises_nothing_else(data: st.DataObject, source: str) -> None:
    position = data.draw(st.integers(0, len(source)))
    cut = data.draw(st.integers(0, 3))
    put = data.draw(st.text(max_size=3) | st.text(alphabet=bech32.CHARSET, max_size=3))
    damaged = source[:position] + put + source[position + cut :]
    if damaged.strip() != source:
        with pytest.raises(InvoiceError):
            decode_invoice(damaged)


def with_checksum(hrp: str, symbols: bytes) -> str:
    """Text with a right checksum, whatever it says."""
    return str(bech32.bech32_encode(bech32.Encoding.BECH32, hrp, list(symbols)))


@given(st.text(alphabet="lnbcrt1234567890mu", max_size=20), st.binary(max_size=300))
def test_the_checksum_is_the_librarys(hrp: str, raw: bytes) -> None:
    symbols = bytes(byte & 31 for byte in raw)
    expected = bech32.bech32_polymod([*bech32.bech32_hrp_expand(hrp), *symbols])
    assert module._checksum_state(hrp, symbols) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data(), source=st.sampled_from([example["invoice"] for example in VECTORS["valid"]]))
def test_damage_behind_a_right_checksum_raises_nothing_else(data: st.DataObject, source: str) -> None:
    hrp, symbols = module._split(source)
    position = data.draw(st.integers(0, len(symbols)))
    cut = data.draw(st.integers(0, 4))
    put = bytes(data.draw(st.lists(st.integers(0, 31), max_size=4)))
    hrp = data.draw(st.sampled_from([hrp, "lnbcrt1u", "lnbc0", "ln", "lnbc1" + "0" * 30, "lnbc1mm", "lnxy5"]))
    text = with_checksum(hrp, symbols[:position] + put + symbols[position + cut :])
    with contextlib.suppress(InvoiceError):
        assert len(decode_invoice(text).payee) == 33


@given(st.text(max_size=200) | st.binary(max_size=80).map(lambda raw: "lnbc1" + raw.hex()))
def test_any_text_is_an_invoice_or_an_error(text: str) -> None:
    with pytest.raises(InvoiceError):
        decode_invoice(text)


# --- what a user meets --------------------------------------------------------------------------------------------


def test_another_networks_invoice_names_both_networks() -> None:
    text = encode_invoice(PLAIN, SECRET)
    with pytest.raises(InvoiceError, match="this invoice is for mainnet, this node runs on regtest"):
        decode_invoice(text, REGTEST)
    for network in (MAINNET, TESTNET, SIGNET, REGTEST):
        text = encode_invoice(dataclasses.replace(PLAIN, network=network, amount_msat=1000), SECRET)
        assert text.startswith(f"ln{network.invoice_prefix}10n1")
        assert decode_invoice(text, network).network == network


def test_forms_that_people_paste() -> None:
    text = encode_invoice(PLAIN, SECRET)
    for form in (f"lightning:{text}", f"LIGHTNING:{text.upper()}", f"  {text}\n", f"Lightning:{text}"):
        assert decode_invoice(form) == PLAIN
    with pytest.raises(InvoiceError, match="BOLT 12"):
        decode_invoice(
            "lno1pqps7sjqpgtyzm3qv4uxzmtsd3jjqer9wd3hy6tsw35k7msjzfpy7nz5yqcnygrfdej82um5wf5k2uckyypwa3eyt44h6txtxquqh7lz5djge4afgfjn7k4rgrkuag0jsd5xvxg"
        )
    with pytest.raises(InvoiceError, match="at most 7089 characters, not 8000"):
        decode_invoice("lnbc1" + "q" * 7995)
    with pytest.raises(InvoiceError, match="currency this node does not know: 'ltc'"):
        decode_invoice(with_checksum("lnltc1u", bytes(200)))


@pytest.mark.parametrize(
    ("amount_msat", "text"),
    [
        (1, "10p"),
        (10, "100p"),
        (100, "1n"),
        (1_000, "10n"),
        (123_450, "1234500p"),
        (100_000, "1u"),
        (250_000_000, "2500u"),
        (2_000_000_000, "20m"),
        (100_000_000_000, "1"),
        (2_100_000_000_000_000_000, "21000000"),
    ],
)
def test_amounts_take_the_shortest_form(amount_msat: int, text: str) -> None:
    encoded = encode_invoice(dataclasses.replace(PLAIN, amount_msat=amount_msat), SECRET)
    assert encoded.startswith(f"lnbc{text}1pvjluez")
    assert decode_invoice(encoded).amount_msat == amount_msat


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        ("0", "zero"),
        ("0u", "zero"),
        ("05u", "zero"),
        ("5k", "multipliers"),
        ("5uu", "multipliers"),
        ("1.5m", "multipliers"),
        ("15p", "whole number"),
        ("21000001", "more bitcoin than there are"),
        ("9" * 21, "more bitcoin than there are"),
    ],
)
def test_amounts_that_are_refused(amount: str, reason: str) -> None:
    _, symbols = module._split(encode_invoice(PLAIN, SECRET))
    with pytest.raises(InvoiceError, match=reason):
        decode_invoice(with_checksum(f"lnbc{amount}", symbols))


def test_amounts_with_a_smaller_multiplier_than_needed() -> None:
    _, symbols = module._split(encode_invoice(PLAIN, SECRET))
    signed = symbols[:-104]

    def resigned(hrp: str) -> str:
        signature = sign_recoverable(SECRET, module._digest(hrp, signed))
        return with_checksum(hrp, signed + module._from_bytes(signature))

    assert decode_invoice(resigned("lnbc2500000n")).amount_msat == 250_000_000
    assert decode_invoice(resigned("lnbc10000000000p")).amount_msat == 1_000_000_000


# --- rules of the fields ------------------------------------------------------------------------------------------


def signed_fields(*fields: tuple[int, bytes], secret: bytes = SECRET, high_s: bool = False) -> str:
    """An invoice with exactly these fields, rightly signed."""
    symbols = bytes(7) + b"".join(module._field(type_, value) for type_, value in fields)
    signature = sign_recoverable(secret, module._digest("lnbc", symbols))
    if high_s:
        s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
        signature = signature[:32] + s.to_bytes(32, "big") + bytes([signature[64] ^ 1])
    return with_checksum("lnbc", symbols + module._from_bytes(signature))


P = (1, module._from_bytes(HASH))
S = (16, module._from_bytes(PAYMENT_SECRET))
D = (13, module._from_bytes(b"d"))
H = (23, module._from_bytes(CAKES))
N = (19, module._from_bytes(PAYEE))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([S, D], "no valid payment hash"),
        ([P, D], "no valid payment secret"),
        ([P, S], "either a description or the hash of one"),
        ([P, S, D, H], "either a description or the hash of one"),
        ([P, (16, bytes(51)), D], "no valid payment secret"),
        ([(1, bytes(53)), S, D], "no valid payment hash"),
        ([P, S, (13, module._from_bytes(b"\xff\xfe"))], "not UTF-8"),
        ([P, S, D, (6, b"\x00\x01")], "x (expiry) begins with a zero"),
        ([P, S, D, (24, b"\x00\x01")], "c (min_final_cltv_expiry_delta) begins with a zero"),
        ([P, S, D, (5, b"\x00\x01")], "9 (features) begins with a zero"),
        ([P, S, D, (24, b"\x1f" * 1000)], "absurdly large"),
        ([P, S, D, (5, module._from_int(1 << 22))], "(bit 22)"),
        ([P, S, D, (5, module._from_int(1 << 30 | 1 << 1000))], "(bit 30, 1000)"),
        ([P, S, D, (5, module._from_int(1 << 51))], "option_zeroconf without option_scid_alias"),
        ([P, S, D, (3, b"")], "routing hint has the wrong length"),
        ([P, S, D, (3, bytes(80))], "routing hint has the wrong length"),
        ([P, S, D, (3, bytes(82))], "no valid public key"),
        ([P, S, D, (3, module._from_bytes(b"\x02" + b"\xff" * 50))], "no valid public key"),
    ],
)
def test_fields_that_are_refused(fields: list[tuple[int, bytes]], reason: str) -> None:
    with pytest.raises(InvoiceError) as caught:
        decode_invoice(signed_fields(*fields))
    assert reason in str(caught.value)


def test_every_feature_of_invoices_may_be_required() -> None:
    for bit in sorted(SUPPORTED_FEATURES):
        assert bit in decode_invoice(signed_fields(P, S, D, (5, module._from_int(1 << bit)))).features
    assert decode_invoice(encode_invoice(PLAIN, SECRET)).has(Feature.payment_secret)


@pytest.mark.parametrize("size", [7, 1000])
def test_an_expiry_may_be_as_far_as_it_likes(size: int) -> None:
    """BOLT 11 gives `x` no limit."""
    invoice = decode_invoice(signed_fields(P, S, D, (6, b"\x1f" * size)))
    assert invoice.expiry_seconds == 2**32 - 1
    assert not invoice.is_expired(invoice.timestamp + 2**31)


def test_the_first_of_several_counts() -> None:
    other = (1, module._from_bytes(b"\x05" * 32))
    decoded = decode_invoice(signed_fields(P, S, D, other, (13, module._from_bytes(b"second"))))
    assert (decoded.payment_hash, decoded.description) == (HASH, "d")
    assert decoded.unknown_fields == (other, (13, module._from_bytes(b"second")))


def test_defaults_and_empty_numbers() -> None:
    decoded = decode_invoice(signed_fields(P, S, D))
    assert (decoded.expiry_seconds, decoded.min_final_cltv_expiry_delta, decoded.features) == (3600, 18, frozenset())
    assert decode_invoice(signed_fields(P, S, D, (6, b""))).expiry_seconds == 0
    assert decoded.expires_at == 3600
    assert not decoded.is_expired(3600)
    assert decoded.is_expired(3600.5)


def test_fallbacks_that_mean_nothing_are_skipped() -> None:
    skipped = [
        (9, b""),
        (9, b"\x00" + module._from_bytes(bytes(21))),
        (9, b"\x01" + module._from_bytes(bytes(20))),
        (9, b"\x11" + module._from_bytes(bytes(32))),
        (9, b"\x12" + module._from_bytes(bytes(19))),
        (9, b"\x13" + module._from_bytes(bytes(20))),
    ]
    decoded = decode_invoice(signed_fields(P, S, D, *skipped, (9, b"\x10" + module._from_bytes(b"ab"))))
    assert decoded.unknown_fields == tuple(skipped)
    assert decoded.fallback_scripts == (b"\x60\x02ab",)
    assert len(decoded.fallback_addresses) == 1


def test_signatures_and_the_payee_field() -> None:
    assert decode_invoice(signed_fields(P, S, D, N)).payee_is_explicit
    assert decode_invoice(signed_fields(P, S, D, high_s=True)).payee == PAYEE
    with pytest.raises(InvoiceError, match="not in its standard form"):
        decode_invoice(signed_fields(P, S, D, N, high_s=True))
    with pytest.raises(InvoiceError, match="not by the node it names"):
        decode_invoice(signed_fields(P, S, D, N, secret=b"\x05" * 32))
    no_point = (19, module._from_bytes(b"\x02" + b"\xff" * 32))
    decoded = decode_invoice(signed_fields(P, S, D, no_point))
    assert (decoded.payee, decoded.payee_is_explicit, decoded.unknown_fields) == (PAYEE, False, (no_point,))


# --- what cannot be encoded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount_msat": 0}, "cannot ask for 0 msat"),
        ({"amount_msat": -5}, "cannot ask for -5 msat"),
        ({"amount_msat": 21_000_000 * 10**11 + 1}, "cannot ask for"),
        ({"timestamp": 1 << 35}, "timestamp"),
        ({"timestamp": -1}, "timestamp"),
        ({"description": None}, "either a description"),
        ({"description_hash": CAKES}, "either a description"),
        ({"description": "x" * 640}, "640 bytes; an invoice holds at most 639"),
        ({"payment_metadata": bytes(640)}, "payment metadata has 640 bytes"),
        ({"payment_hash": bytes(31)}, "payment hash has 32 bytes, not 31"),
        ({"payment_secret": b""}, "payment secret has 32 bytes, not 0"),
        ({"expiry_seconds": -1}, "expiry"),
        ({"min_final_cltv_expiry_delta": 1 << 32}, "min_final_cltv_expiry_delta"),
        ({"features": frozenset((8, 14, 51))}, "option_zeroconf without option_scid_alias"),
        ({"features": frozenset((8, 14, 100))}, "bit 100"),
        ({"fallback_scripts": (b"\x6a",)}, "P2PKH, P2SH or a witness program"),
        ({"routing_hints": ((),)}, "at least one channel"),
        ({"routing_hints": ((BLOCKSTREAM,) * 13,)}, "routing hint has 663 bytes"),
        ({"payee_is_explicit": True, "payee": bytes(33)}, "not a public key"),
        ({"unknown_fields": ((32, b""),)}, "type 32"),
        ({"unknown_fields": ((2, bytes(1023)),) * 7}, "at most 7089 characters"),
    ],
)
def test_values_that_do_not_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvoiceError) as caught:
        encode_invoice(dataclasses.replace(PLAIN, **changes), SECRET)
    assert reason in str(caught.value)


def test_a_signer_that_answers_nonsense() -> None:
    with pytest.raises(InvoiceError, match="65 bytes, not 64"):
        encode_invoice(PLAIN, lambda digest: bytes(64))
