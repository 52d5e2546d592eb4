"""`channelctl`: amounts, times and ids as people write them; messages as JSON; text that others chose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channeld.cli import amounts, ids
from channeld.cli.amounts import FormatError
from channeld.cli.failures import as_sentence
from channeld.cli.jsonable import enum_name, to_jsonable
from channeld.cli.output import printable
from channeld.v1 import channels_pb2, events_pb2, invoices_pb2, node_pb2, payments_pb2, wallet_pb2

NODE = "02" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "msat"),
    [
        ("1000", 1_000_000),
        ("1000sat", 1_000_000),
        ("1,000 sat", 1_000_000),
        ("1_000sats", 1_000_000),
        ("0.01btc", 1_000_000_000),
        ("0.01 BTC", 1_000_000_000),
        (".5sat", 500),
        ("5000msat", 5_000),
        ("1,234,567.5 sat", 1_234_567_500),
        ("100_000", 100_000_000),
        ("5000 msats", 5_000),
        ("1.5sat", 1_500),
        ("0", 0),
        ("21000000btc", amounts.MAX_SAT * 1000),
    ],
)
def test_amounts_that_people_write(text: str, msat: int) -> None:
    assert amounts.parse_msat(text) == msat


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sat",
        ".",
        "20k",
        "-5",
        "1e3",
        "1.2.3",
        "5 eur",
        "0.5msat",
        "0.0001sat",
        "21000001btc",
        "NaN",
        "inf",
        "0x10",
        "1_0",
        "١٢",
    ],
)
def test_what_is_no_amount_is_told(text: str) -> None:
    with pytest.raises(FormatError, match=r"\.$"):
        amounts.parse_msat(text)


@pytest.mark.parametrize(
    "text", ["1,5btc", "0,01btc", "1,500btc", "0,5sat", "10,00", "1,0000", ",5", "1,000,00 sat", "1,,000"]
)
def test_a_comma_is_never_a_decimal_point(text: str) -> None:
    """Where a comma is one, `0,01btc` is a hundredth of a bitcoin, and must not become a whole one."""
    with pytest.raises(FormatError, match="with a point"):
        amounts.parse_msat(text)


@given(st.integers(0, amounts.MAX_SAT * 1000))
def test_what_is_shown_can_be_typed(msat: int) -> None:
    assert amounts.parse_msat(amounts.msat(msat)) == msat


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_an_error(text: str) -> None:
    try:
        assert 0 <= amounts.parse_msat(text) <= amounts.MAX_SAT * 1000
    except FormatError:
        pass


def test_on_chain_amounts_are_whole_satoshi_and_something() -> None:
    assert amounts.parse_sat("0.5btc") == 50_000_000
    assert amounts.parse_sat("2000msat") == 2
    for text in ("0", "1500msat", "1.5sat"):
        with pytest.raises(FormatError):
            amounts.parse_sat(text)
    with pytest.raises(FormatError, match="more than nothing"):
        amounts.parse_positive_msat("0btc")


def test_feerates() -> None:
    assert amounts.parse_feerate("1") == 250
    assert amounts.parse_feerate("2.5") == 625
    assert amounts.feerate(625) == "2.5 sat/vB"
    for text in ("0", "-1", "0.0001", "fast", "nan", "inf", "1000000"):
        with pytest.raises(FormatError):
            amounts.parse_feerate(text)


def test_times() -> None:
    assert [amounts.parse_duration(text) for text in ("90", "90s", "30m", "12h", "7d", "2w")] == [
        90,
        90,
        1_800,
        43_200,
        604_800,
        1_209_600,
    ]
    for text in ("0", "-1", "soon", "1y", "5000000000"):
        with pytest.raises(FormatError):
            amounts.parse_duration(text)
    assert amounts.duration(0) == "0 s"
    assert amounts.duration(3_725) == "1 h 2 min"
    assert amounts.duration(200_000) == "2 d 7 h"


def test_signed_amounts() -> None:
    assert amounts.msat(-1_500) == "-1.500 sat"
    assert amounts.sat(-1_234) == "-1,234 sat"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (NODE, "", None),
        (f"{NODE}@node.example", "node.example", None),
        (f"{NODE}@127.0.0.1:9736", "127.0.0.1", 9736),
        (f" {NODE.upper()}@[::1]:9735 ", "::1", 9735),
        (f"{NODE}@::1", "::1", None),
        (f"{NODE}@[fe80::1]", "fe80::1", None),
    ],
)
def test_node_addresses(text: str, host: str, port: int | None) -> None:
    assert ids.parse_node_address(text) == (bytes.fromhex(NODE), host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02ab",
        "04" + "ab" * 32,
        NODE + "00",
        f"{NODE}@",
        f"{NODE}@host:0",
        f"{NODE}@host:70000",
        f"{NODE}@host:x",
        f"{NODE}@[::1",
        f"{NODE}@[::1]x",
        f"{NODE}@:5",
    ],
)
def test_what_is_no_node_address_is_told(text: str) -> None:
    with pytest.raises(FormatError, match=r"\.$"):
        ids.parse_node_address(text)


def test_channel_references() -> None:
    assert ids.parse_scid("123x4x5") == 123 << 40 | 4 << 16 | 5
    assert ids.parse_scid("123:4:5") == 123 << 40 | 4 << 16 | 5
    assert ids.scid(123 << 40 | 4 << 16 | 5) == "123x4x5"
    assert ids.parse_scid("99999999x1x1") is None
    assert ids.parse_scid("ab" * 32) is None
    txid, vout = ids.parse_outpoint("01" + "00" * 31 + ":7")
    assert (txid, vout) == (b"\x00" * 31 + b"\x01", 7)
    for text in ("01:x", "01:1", "ab" * 32):
        with pytest.raises(FormatError):
            ids.parse_outpoint(text)


def test_an_id_can_be_shortened_while_it_is_clear() -> None:
    names = ["aaaa1", "aaaa2", "bbbb1"]
    assert ids.pick("bbbb", names, str, "the id") == "bbbb1"
    assert ids.pick("cccc", names, str, "the id") is None
    with pytest.raises(FormatError, match="2 ids begin with aaaa"):
        ids.pick("aaaa", names, str, "the id")
    assert ids.parse_hash_prefix(" ABcd ", "an id") == "abcd"
    for text in ("abc", "wxyz", "ab" * 33):
        with pytest.raises(FormatError):
            ids.parse_hash_prefix(text, "an id")


def test_json_has_ids_as_people_read_them_and_absent_fields_as_null() -> None:
    coin = wallet_pb2.Coin(txid=bytes(range(32)), vout=1, amount_sat=2**60)
    shown = to_jsonable(coin)
    assert shown["txid"] == bytes(range(32))[::-1].hex()
    assert shown["amount_sat"] == 2**60
    assert list(shown) == ["txid", "vout", "amount_sat", "address", "confirmations", "reserved"]
    info = to_jsonable(node_pb2.GetInfoResponse(block_hash=bytes(range(32)), node_id=b"\x02" * 33))
    assert info["block_hash"].startswith("1f1e")
    assert info["node_id"] == "02" * 33
    channel = to_jsonable(
        channels_pb2.Channel(short_channel_id=123 << 40, htlcs=[channels_pb2.Htlc(payment_hash=b"\x01\x02")])
    )
    assert channel["short_channel_id"] == "123x0x0"
    assert channel["local_alias_short_channel_id"] is None
    assert channel["funding_txid"] is None
    assert channel["htlcs"][0]["payment_hash"] == "0102"
    assert channel["channel_type"] == []
    outcome = payments_pb2.PayStreamResponse(request_id=1, error=payments_pb2.PayError(code=5, sentence="No."))
    assert to_jsonable(outcome)["payment"] is None
    event = to_jsonable(events_pb2.Event(kind="x", data_json='{"amount_msat":1152921504606846977}'))
    assert event["data"] == {"amount_msat": 2**60 + 1}
    assert "data_json" not in event


def test_json_has_words_for_enums_also_for_those_of_a_newer_daemon() -> None:
    assert enum_name(invoices_pb2.Invoice(state=invoices_pb2.INVOICE_STATE_SETTLED), "state") == "settled"
    assert enum_name(payments_pb2.Payment(state=payments_pb2.PAYMENT_STATE_IN_FLIGHT), "state") == "in_flight"
    newer = payments_pb2.Payment.FromString(b"\x10\x63")
    assert enum_name(newer, "state") == "99"


def test_the_daemons_words_become_sentences() -> None:
    assert as_sentence("this invoice has been paid already") == "This invoice has been paid already."
    assert as_sentence("bcrt1qx is not an address") == "bcrt1qx is not an address."
    assert as_sentence("Is it there?") == "Is it there?"
    assert as_sentence("") == "."


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    assert printable("tea für 2 ☕") == "tea für 2 ☕"
    for evil in ("\x1b[2J", "a\rb", "a\nb", "\u202etxt", "\x9b31m"):
        assert all(char.isprintable() for char in printable(evil))
