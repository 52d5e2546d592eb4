"""`channelctl` against a daemon's API: what each command does and prints, under its own name and under lncli's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from channeld.cli import output
from channeld.cli.main import run
from tests.cli_support import Channelctl, Daemon
from tests.fake_invoices import PEER_ID
from tests.fake_node import NODE_ID

PEER = PEER_ID.hex()
OTHER = "02" + "33" * 32


def test_info(channelctl: Channelctl) -> None:
    for name in ("info", "getinfo"):
        ran = channelctl(name)
        assert ran.status == 0
        assert NODE_ID.hex() in ran.out
        assert f"{NODE_ID.hex()}@127.0.0.1:9735" in ran.out
        assert "in step: following bitcoind" in ran.out
        assert channelctl.json(name)["block_hash"] == bytes(range(32))[::-1].hex()


def test_json_is_understood_everywhere(channelctl: Channelctl) -> None:
    for arguments in (("--json", "info"), ("info", "--json"), ("--json", "payments"), ("payments", "--json", "list")):
        assert isinstance(json.loads(channelctl(*arguments).out), dict)


def test_addresses(channelctl: Channelctl) -> None:
    assert channelctl("wallet", "new-address").out.startswith("bcrt1p")
    assert channelctl("wallet", "new-address", "p2wpkh").out.startswith("bcrt1q")
    assert channelctl("newaddress", "p2wkh").out.startswith("bcrt1q")
    assert channelctl.json("newaddress", "p2tr")["address"].startswith("bcrt1p")
    assert channelctl("newaddress", "np2wkh").status == 2


def test_balance_names_units(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel(200_000)
    shown = channelctl("wallet", "balance").out
    assert "799,846 sat" in shown
    assert "999,846 sat" in shown
    balance = channelctl.json("walletbalance")
    assert balance["confirmed_sat"] == 799_846
    assert balance["channels_local_msat"] == 200_000_000
    assert all(name.endswith(("_sat", "_msat")) for name in balance)


def test_coins_and_transactions(channelctl: Channelctl, daemon: Daemon) -> None:
    txid = daemon.node.coins_[0].txid[::-1].hex()
    assert f"{txid}:0" in channelctl("wallet", "coins").out
    assert channelctl.json("listunspent")["coins"][0]["txid"] == txid
    assert txid in channelctl("wallet", "transactions").out
    assert channelctl.json("listchaintxns")["transactions"][0]["fee_sat"] is None
    daemon.do(daemon.node.coins_.clear)
    assert "The wallet is empty" in channelctl("wallet", "coins").out


def test_send_and_bump(channelctl: Channelctl, daemon: Daemon) -> None:
    ran = channelctl("wallet", "send", "bcrt1qsomebody", "0.0001btc", "--sat-per-vbyte", "4", "--yes")
    assert ran.status == 0
    assert "Send 10,000 sat to bcrt1qsomebody at 4 sat/vB." in ran.err
    assert "10,561 sat left the wallet (fee 561 sat)" in ran.out
    txid = daemon.node.transactions_[0].txid[::-1].hex()
    bumped = channelctl.json("wallet", "bump", txid[:10], "--sat-per-vbyte", "8", "--yes")
    assert bumped["transaction"]["fee_sat"] == 1_122
    assert channelctl("wallet", "bump", "ffff", "--sat-per-vbyte", "8").status == 3
    sent = channelctl.json("sendcoins", "--addr", "bcrt1qsomebody", "--amt", "500", "--sat_per_vbyte", "1", "--force")
    assert sent["transaction"]["amount_sat"] == -640
    everything = channelctl.json("sendcoins", "bcrt1qsomebody", "--sweepall", "--force")
    assert everything["transaction"]["amount_sat"] == -988_799
    assert channelctl("sendcoins", "bcrt1qx", "5", "--sweepall").status == 2
    assert daemon.node.coins_ == []
    assert channelctl("wallet", "send", "bcrt1qsomebody", "1").status == 4


def test_rescan(channelctl: Channelctl, daemon: Daemon) -> None:
    height = daemon.node.height
    shown = channelctl("wallet", "rescan", str(height - 9))
    assert (shown.status, shown.out) == (0, "Looked through 10 blocks: 1 new coin of 40,000 sat in all.\n")
    answer = channelctl.json("wallet", "rescan", "0")
    assert (answer["height"], answer["tip_height"], answer["found_sat"]) == (height, height, 40_000)
    refused = channelctl("wallet", "rescan", str(height + 1))
    assert (refused.status, f"the last is {height}" in refused.err) == (2, True)
    assert channelctl("wallet", "rescan").status == 2


def test_peers(channelctl: Channelctl) -> None:
    assert "There are no peers" in channelctl("peer", "list").out
    assert channelctl("peer", "connect", f"{PEER}@127.0.0.1:9736").out == f"Connected to {PEER} at 127.0.0.1:9736.\n"
    assert channelctl("connect", f"{OTHER}@node.example", "--perm", "--timeout", "5s").status == 0
    assert channelctl("peer", "connect", OTHER, "[::1]:9737").out == f"Connected to {OTHER} at ::1:9737.\n"
    listed = channelctl("listpeers").out
    assert PEER in listed
    assert "12 ms" in listed
    assert [peer["node_id"] for peer in channelctl.json("peer", "list")["peers"]] == [PEER, OTHER]
    assert channelctl("disconnect", OTHER).status == 0
    assert len(channelctl.json("listpeers")["peers"]) == 1


def test_a_channel_from_open_to_close(channelctl: Channelctl, daemon: Daemon) -> None:
    opened = channelctl("channel", "open", f"{PEER}@127.0.0.1", "50000", "--push", "1500msat", "--private", "--yes")
    assert opened.status == 0
    assert "50,000 sat" in opened.err
    assert "of which 1.500 sat are given away" in opened.err
    assert "waiting for 3 more confirmations" in opened.out
    (channel,) = channelctl.json("channel", "list")["channels"]
    assert (channel["remote_msat"], channel["announced"], channel["active"]) == (1_500, False, False)
    assert channelctl.json("pendingchannels")["channels"] == [channel]
    daemon.do(lambda: daemon.node.mine(3))
    listed = channelctl("channel", "list").out
    assert "123x1x0" in listed
    assert "48,998.500 sat" in listed
    assert channelctl("channel", "closing", "123x1x0").status == 7
    funding = f"{channel['funding_txid']}:0"
    for reference in (channel["channel_id"], channel["channel_id"][:6], "123x1x0", funding):
        assert channelctl.json("channel", "show", reference)["channel"]["channel_id"] == channel["channel_id"]
    assert funding in channelctl("channel", "show", "123x1x0").out
    daemon.do(lambda: daemon.node.cut_off())
    assert "normal, peer away" in channelctl("channel", "list").out
    daemon.do(lambda: daemon.node.come_back())
    closed = channelctl("channel", "close", "123x1x0", "--yes")
    assert "together with the peer; 49,998.500 sat of it are ours" in closed.err
    assert "waiting for 1 block" in closed.out
    outputs = channelctl("channel", "closed", channel["channel_id"]).out
    for text in ("by us alone, in block 123", "2,810 sat", "49,998 sat", "free in 143 blocks", "the peer took it"):
        assert text in outputs
    taken = channelctl.json("channel", "closed", channel["channel_id"])["outputs"][1]
    assert (taken["owner"], taken["htlc"]["amount_msat"], taken["free_height"]) == ("remote", 7_500, None)
    assert taken["spending_txid"] == bytes(range(32))[::-1].hex()
    daemon.do(lambda: daemon.node.mine(1))
    assert channelctl.json("channel", "list")["channels"] == []
    assert channelctl.json("channel", "list", "--all")["channels"][0]["phase"] == "closed"


def test_a_channel_as_lncli_users_type_it(channelctl: Channelctl, daemon: Daemon) -> None:
    channelctl("connect", f"{PEER}@127.0.0.1:9736")
    flags = ("--node_key", PEER, "--local_amt", "40000", "--push_amt", "1000", "--sat_per_vbyte", "2", "--private")
    channel = channelctl.json("openchannel", *flags)["channel"]
    assert (channel["capacity_sat"], channel["remote_msat"], channel["feerate_per_kw"]) == (40_000, 1_000_000, 500)
    assert channelctl("openchannel", PEER, "30000", "500", "--connect", "127.0.0.1:9").status == 0
    daemon.do(lambda: daemon.node.mine(3))
    assert len(channelctl.json("listchannels", "--active_only", "--peer", PEER)["channels"]) == 2
    assert channelctl.json("listchannels", "--public_only")["channels"][0]["capacity_sat"] == 30_000
    assert channelctl.json("listchannels", "--inactive_only")["channels"] == []
    assert channelctl("closechannel", channel["funding_txid"], "0").status == 0
    assert channelctl("closechannel", "--chan_point", f"{channel['funding_txid']}:1").status == 3
    (rest,) = channelctl.json("listchannels", "--active_only")["channels"]
    by_flags = ("--funding_txid", rest["funding_txid"], "--output_index", "0", "--force")
    assert "without the peer" in channelctl("closechannel", *by_flags).err


def test_waiting_for_a_channel(channelctl: Channelctl, daemon: Daemon) -> None:
    channelctl("connect", f"{PEER}@127.0.0.1:9736")
    daemon.when_followed(lambda: daemon.node.mine(3))
    opened = channelctl("channel", "open", PEER, "50000", "--wait")
    assert opened.status == 0
    assert "waiting for 3 more confirmations" in opened.err
    assert "The channel can be used: 49,000 sat can be sent." in opened.out
    daemon.when_followed(lambda: daemon.node.mine(1))
    closed = channelctl("closechannel", "123x1x0", "--block")
    assert closed.status == 0
    assert "The channel is closed." in closed.out


def test_invoices(channelctl: Channelctl, daemon: Daemon) -> None:
    created = channelctl("invoice", "create", "1000sat", "tea for two", "--expiry", "2h")
    assert created.out.splitlines()[0].startswith("lnbcrt1")
    assert "1,000 sat" in created.out
    assert "2 h" in created.out
    memo = channelctl.json("addinvoice", "--amt", "500", "--memo", "hi", "--expiry", "60")["invoice"]
    assert (memo["amount_msat"], memo["description"], memo["expiry_seconds"]) == (500_000, "hi", 60)
    assert channelctl.json("addinvoice", "--amt_msat", "7")["invoice"]["amount_msat"] == 7
    assert channelctl.json("addinvoice", "300")["invoice"]["amount_msat"] == 300_000
    preimage = "42" * 32
    given = channelctl.json("invoice", "create", "--preimage", preimage, "-d", "any amount")["invoice"]
    assert (given["amount_msat"], given["description"]) == (None, "any amount")
    assert given["payment_preimage"] is None
    daemon.do(lambda: daemon.node.receive(bytes.fromhex(given["payment_hash"]), 123_456))
    shown = channelctl("invoice", "show", given["payment_hash"][:8]).out
    assert "123.456 sat" in shown
    assert preimage in shown
    assert channelctl.json("lookupinvoice", "--rhash", given["payment_hash"])["invoice"]["state"] == "settled"
    assert channelctl("cancelinvoice", given["payment_hash"]).status == 7
    assert channelctl("invoice", "cancel", memo["payment_hash"][:12]).status == 0
    states = [invoice["state"] for invoice in channelctl.json("listinvoices")["invoices"]]
    assert states == ["settled", "open", "open", "canceled", "open"]
    assert len(channelctl.json("listinvoices", "--max_invoices", "2")["invoices"]) == 2
    assert len(channelctl.json("invoice", "list", "-n", "9", "--offset", "4")["invoices"]) == 1


def test_decode(channelctl: Channelctl, daemon: Daemon) -> None:
    text = daemon.do(lambda: daemon.node.remote_invoice(21_500, "a book"))
    shown = channelctl("decode", text).out
    assert "21.500 sat" in shown
    assert "a book" in shown
    assert "103x1x0" in shown
    hop = channelctl.json("decodepayreq", "--pay_req", text)["route_hints"][0]["hops"][0]
    assert (hop["short_channel_id"], hop["cltv_expiry_delta_blocks"]) == ("103x1x0", 80)


def test_pay(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    text = daemon.do(lambda: daemon.node.remote_invoice(2_000_000, "a \x1b[31mbook"))
    paid = channelctl("pay", text)
    assert paid.status == 0
    assert f"Pay 2,000 sat to {PEER}." in paid.err
    assert "For: a �[31mbook" in paid.err
    assert "The fee is at most 20 sat." in paid.err
    assert "Paid 2,000 sat, fee 0 sat." in paid.out
    listed = channelctl.json("payments")["payments"]
    assert [payment["state"] for payment in listed] == ["succeeded"]
    assert listed[0]["payment_preimage"] in paid.out
    assert listed[0]["payment_preimage"] in channelctl("payments", "show", listed[0]["payment_hash"][:9]).out
    assert channelctl.json("listpayments", "--max_payments", "1")["payments"] == listed
    again = channelctl("pay", text)
    assert again.status == 6
    assert "paid already" in again.err
    open_amount = daemon.do(lambda: daemon.node.remote_invoice(None))
    assert channelctl("pay", open_amount).status == 2
    assert channelctl.json("pay", open_amount, "--amount", "1500msat")["payment"]["amount_msat"] == 1_500


def test_pay_as_lncli_users_type_it(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    first, second = (daemon.do(lambda: daemon.node.remote_invoice(1_000_000)) for _ in range(2))
    flags = ("--pay_req", first, "--fee_limit", "7", "--timeout", "30s", "--force")
    assert "The fee is at most 7 sat." in channelctl("payinvoice", *flags).err
    assert "The fee is at most 5 sat." in channelctl("payinvoice", second, "--fee_limit_percent", "0.5").err
    both = channelctl("payinvoice", second, "--pay_req", first)
    assert both.status == 2
    assert "given twice" in both.err
    assert "The invoice is missing." in channelctl("payinvoice").err


def test_a_payment_that_failed(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    text = daemon.unknown_invoice(1_000)
    failed = channelctl("pay", text)
    assert (failed.status, failed.out) == (1, "")
    assert "The payment failed: The payee does not know this payment hash." in failed.err
    as_json = channelctl("pay", daemon.unknown_invoice(2_000), "--json")
    assert as_json.status == 1
    assert json.loads(as_json.out)["payment"]["state"] == "failed"


def test_a_payment_that_takes_longer(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    daemon.do(daemon.node.pay_gate.clear)
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000))
    waited = channelctl("pay", text, "--timeout", "1s")
    assert waited.status == 8
    assert "still under way after 1 s" in waited.err
    payment_hash = next(iter(daemon.node.payments)).hex()
    assert f"channelctl payments show {payment_hash}" in waited.err
    assert "under way" in channelctl("payments").out
    daemon.do(daemon.node.pay_gate.set)


def test_the_same_key_moves_money_once(channelctl: Channelctl, daemon: Daemon) -> None:
    send = ("wallet", "send", "bcrt1qsomebody", "1000", "--idempotency-key", "mine")
    first = channelctl.json(*send)
    assert channelctl.json(*send) == first
    assert daemon.node.calls["send_coins"] == 2
    assert len(daemon.node.transactions_) == 2
    other = channelctl("wallet", "send", "bcrt1qsomebody", "2000", "--idempotency-key", "mine")
    assert other.status == 10
    assert channelctl.json("wallet", "send", "bcrt1qsomebody", "1000") != first


def test_events(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.when_followed(
        lambda: (
            daemon.node.emit("chain.block", "A block."),
            daemon.node.emit("payment.succeeded", "Paid.\x1b[2J", amount_msat=5),
        )
    )
    ran = channelctl("events", "--kind", "payment", "--count", "1")
    assert ran.status == 0
    (line,) = ran.out.splitlines()
    assert "#2  payment.succeeded   Paid.�[2J" in line
    wrong = channelctl("events", "--kind", "payment.paid")
    assert wrong.status == 2
    assert "payment.failed, payment.succeeded" in wrong.err
    lines = channelctl("events", "--since", "0", "--count", "2", "--json").out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["data"] == {"amount_msat": 5}


def test_stop(channelctl: Channelctl, daemon: Daemon) -> None:
    assert channelctl("stop").out == "The daemon is stopping.\n"
    assert daemon.node.stopped.is_set()


# Questions


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Somebody sits at the terminal, and answers."""
    asked: list[str] = []

    def answer_with(answer: str) -> list[str]:
        def confirm(question: str, **_: Any) -> bool:
            asked.append(question)
            return answer == "y"

        monkeypatch.setattr(output.Output, "is_watched", property(lambda self: True))
        monkeypatch.setattr("typer.confirm", confirm)
        return asked

    return answer_with


def test_money_moves_only_after_a_yes(
    channelctl: Channelctl, daemon: Daemon, watched: Callable[[str], list[str]]
) -> None:
    daemon.usable_channel()
    invoice = daemon.do(lambda: daemon.node.remote_invoice(1_000))
    before = dict(daemon.node.calls)
    asked = watched("n")
    commands = [
        ("pay", invoice),
        ("wallet", "send", "bcrt1qsomebody", "1000"),
        ("wallet", "bump", "00" * 32, "--sat-per-vbyte", "2"),
        ("channel", "open", PEER, "50000"),
        ("channel", "close", "123x1x0"),
        ("payinvoice", invoice),
        ("sendcoins", "bcrt1qsomebody", "1000"),
    ]
    for number, command in enumerate(commands, 1):
        ran = channelctl(*command)
        assert (ran.status, ran.out) == (1, "")
        assert "Nothing was done." in ran.err
        assert len(asked) == number
    assert {verb: count for verb, count in daemon.node.calls.items() if verb != "info"} == before
    asked = watched("y")
    assert channelctl("pay", invoice).status == 0
    assert len(asked) == len(commands) + 1
    assert channelctl("wallet", "send", "bcrt1qsomebody", "1000", "--yes").status == 0
    assert len(asked) == len(commands) + 1


# What there is


def test_every_command_has_help_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    from channeld.cli.main import app

    groups = {group.name: group.typer_instance for group in app.registered_groups}
    commands = [[str(command.name)] for command in app.registered_commands]
    for name, group in groups.items():
        assert group is not None
        commands += [[str(name), str(command.name)] for command in group.registered_commands]
    assert len(commands) > 35
    for command in commands:
        capsys.readouterr()
        assert run([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--json" in shown
        assert "Usage: channelctl" in shown
        assert "<parse>" not in shown  # the name of a function of ours, where a type belongs


def test_hold_invoices(channelctl: Channelctl, daemon: Daemon) -> None:
    preimage = hashlib.sha256(b"held").digest()
    payment_hash = hashlib.sha256(preimage)
    created = channelctl("invoice", "add", "1000sat", "held", "--hash", payment_hash.hexdigest(), "--cltv-delta", "99")
    assert created.status == 0, created.err
    assert "channelctl invoice settle" in created.out
    assert daemon.node.last_delta_blocks == 99
    early = channelctl("invoice", "settle", preimage.hex())
    assert early.status != 0
    assert "not paid yet" in early.err
    daemon.do(lambda: daemon.node.accept(payment_hash.digest(), 1_000_000))
    shown = channelctl("invoice", "show", payment_hash.hexdigest()[:10]).out
    assert "accepted" in shown
    assert "220" in shown  # the block until which it waits
    assert "hello" in shown  # what the payer sent along
    assert channelctl.json("invoice", "settle", preimage.hex())["invoice"]["state"] == "settled"
    ours = channelctl.json("invoice", "create", "5", "--hold")["invoice"]
    assert ours["is_hold"]
    daemon.do(lambda: daemon.node.accept(bytes.fromhex(ours["payment_hash"]), 5_000))
    taken = channelctl("invoice", "settle", "--hash", ours["payment_hash"][:10])
    assert "The payment is taken: 5" in taken.out, taken
    assert channelctl("invoice", "settle").status == 2
    other = hashlib.sha256(b"other").digest()
    theirs = hashlib.sha256(other).digest()
    held = channelctl.json("addholdinvoice", theirs.hex(), "700", "--cltv_expiry_delta", "80")["invoice"]
    assert (held["amount_msat"], held["is_hold"]) == (700_000, True)
    daemon.do(lambda: daemon.node.accept(theirs, 700_000))
    assert channelctl.json("settleinvoice", "--preimage", other.hex())["invoice"]["state"] == "settled"
    assert channelctl("addholdinvoice", "--amt", "1").status == 2
