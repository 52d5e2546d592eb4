"""`channelctl`: keysend, rebalance, probe; attempts as they happen; cancelling; what users of lncli type."""

from __future__ import annotations

import json

from channeld.cli.payment_options import Limits
from channeld.node.payment_views import InvoiceOrder, KeysendOrder, ProbeOrder, RebalanceOrder
from tests.cli_support import Channelctl, Daemon
from tests.fake_invoices import PEER_ID

PEER = PEER_ID.hex()
NOBODY = "02" + "99" * 32
LAST_HOP = "03" + "44" * 32


def test_attempts_are_told_as_they_happen(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    paid = channelctl("pay", daemon.do(lambda: daemon.node.remote_invoice(2_000_000)))
    assert paid.status == 0
    began = f"Part 1: 2,000 sat by 03222222… (120x1x0) to {PEER[:8]}… (121x1x0), no fee."
    assert next(line for line in paid.err.splitlines() if line.startswith("Part")) == began
    assert "Part 1 arrived after" in paid.err
    assert "(held by 03222222… 0.3 s)" in paid.err
    failed = channelctl("pay", daemon.unknown_invoice(1_000))
    assert "The node is left alone." in failed.err
    quiet = channelctl("pay", daemon.do(lambda: daemon.node.remote_invoice(1_000)), "--json")
    assert "Part" not in quiet.err
    assert json.loads(quiet.out)["payment"]["state"] == "succeeded"
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000))
    lines = [json.loads(line) for line in channelctl("pay", text, "--json", "--stream").out.splitlines()]
    assert lines[-1]["attempt"] is None
    assert lines[-1]["payment"]["state"] == "succeeded"
    assert lines[-2]["attempt"]["hops"][0]["hold_time_ms"] == 300


def test_limits_reach_the_daemon(channelctl: Channelctl, daemon: Daemon) -> None:
    channel_id = daemon.usable_channel()
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000_000))
    limits = ("--max-fee", "7sat", "--timeout", "5s", "--max-cltv", "300", "--max-parts", "3", "--last-hop", LAST_HOP)
    assert channelctl("pay", text, *limits, "--out", "123x1x0").status == 0
    (order,) = daemon.node.orders
    assert isinstance(order, InvoiceOrder)
    asked = order.limits
    assert (asked.max_fee_msat, asked.timeout_seconds, asked.max_cltv_blocks, asked.max_parts) == (7_000, 5.0, 300, 3)
    assert (asked.outgoing_channel_ids, asked.last_hops) == ((channel_id,), (bytes.fromhex(LAST_HOP),))
    assert Limits().fee_limit_msat(5_000_000) == 50_000
    assert Limits().fee_limit_msat(1) == 10_000


def test_keysend(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    records = ("--record", "65537=0a1b", "--record", "7629169=")
    paid = channelctl("keysend", PEER, "1500", *records)
    assert paid.status == 0, paid
    assert f"Pay 1,500 sat to {PEER}, without an invoice." in paid.err
    assert "The fee is at most 15 sat." in paid.err
    (order,) = daemon.node.orders
    assert isinstance(order, KeysendOrder)
    assert (order.node_id, order.amount_msat) == (PEER_ID, 1_500_000)
    assert order.custom_records == ((65_537, b"\x0a\x1b"), (7_629_169, b""))
    (listed,) = channelctl.json("payments")["payments"]
    assert (listed["kind"], listed["custom_records"][0]) == ("keysend", {"type": 65_537, "value": "0a1b"})
    shown = channelctl("payments", "show", listed["payment_hash"][:8]).out
    assert "keysend" in shown
    assert "65537: 0a1b" in shown
    assert "Part 1: 1,500 sat" in shown
    key = ("--idempotency-key", "mine", "--json")
    first = channelctl.json("keysend", PEER, "1", *key)
    assert channelctl.json("keysend", PEER, "1", *key) == first
    assert channelctl("keysend", PEER, "2", *key).status == 10
    for wrong in (("nonsense", "1"), (PEER, "0"), (PEER, "1", "--record", "5"), (PEER, "1", "--record", "65537=zz")):
        assert channelctl("keysend", *wrong).status == 2


def test_rebalance(channelctl: Channelctl, daemon: Daemon) -> None:
    first, second = daemon.usable_channel(), daemon.usable_channel()
    moved = channelctl("rebalance", "1000", "--out", first.hex(), "--in", second.hex(), "--max-fee", "3")
    assert moved.status == 0, moved
    assert f"Move 1,000 sat from {first.hex()} to {second.hex()}." in moved.err
    (order,) = daemon.node.orders
    assert isinstance(order, RebalanceOrder)
    assert (order.amount_msat, order.outgoing_channel_ids, order.incoming_channel_ids) == (
        1_000_000,
        (first,),
        (second,),
    )
    assert order.limits.outgoing_channel_ids == ()
    third = daemon.usable_channel()
    ways = ("--out", first.hex(), "--out", third.hex(), "--in", second.hex(), "--max-parts", "4")
    assert channelctl.json("rebalance", "1000", *ways)["payment"]["state"] == "succeeded"
    split = daemon.node.orders[-1]
    assert isinstance(split, RebalanceOrder)
    assert (split.outgoing_channel_ids, split.limits.max_parts) == ((first, third), 4)
    shown = channelctl("rebalance", "1000", *ways)
    assert f"from {first.hex()}, {third.hex()} to {second.hex()}." in shown.err
    assert "Part 1" in shown.err
    assert channelctl.json("payments")["payments"][0]["kind"] == "rebalance"
    assert channelctl("rebalance", "1000", "--out", first.hex()).status == 2
    assert channelctl("rebalance", "1000", "--out", "ffff", "--in", second.hex()).status == 3


def test_probe(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    found = channelctl("probe", PEER, "1000")
    assert (found.status, found.out) == (0, "1,000 sat would arrive, for a fee of 1.234 sat.\n")
    text = daemon.do(lambda: daemon.node.remote_invoice(2_000_000))
    answer = channelctl.json("probe", text)
    assert (answer["probe"]["kind"], answer["probe"]["state"], answer["probe"]["fee_msat"]) == (
        "probe",
        "succeeded",
        1_234,
    )
    assert answer["attempts"][0]["state"] == "arrived"
    assert [type(order) for order in daemon.node.orders] == [ProbeOrder, ProbeOrder]
    assert channelctl.json("payments")["payments"] == []
    missing = channelctl("probe", NOBODY, "1000")
    assert (missing.status, missing.out) == (1, "")
    assert "It would not arrive: no way to the payee was found." in missing.err
    assert channelctl("probe", PEER).status == 2
    assert channelctl("estimateroutefee", "--dest", PEER, "--amt", "5").status == 0
    assert channelctl("estimateroutefee", "--pay_req", text).status == 0
    assert channelctl("estimateroutefee").status == 2


def test_cancel_and_track(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    daemon.do(daemon.node.pay_gate.clear)
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000_000))
    waited = channelctl("pay", text, "--timeout", "1s")
    assert waited.status == 8
    name = next(iter(daemon.node.payments)).hex()
    assert f"channelctl payments cancel {name}" in waited.err
    canceled = channelctl("payments", "cancel", name)
    assert canceled.status == 0
    assert "Nothing more is tried. 1,000 sat are still out" in canceled.out
    assert "under way, canceled" in channelctl("payments", "show", name[:10]).out
    assert channelctl.json("payments", "cancel", name)["payment"]["canceled"] is True
    daemon.do(daemon.node.pay_gate.set)
    daemon.wait_for(daemon.node.settled())
    tracked = channelctl("payments", "track", name[:10])
    assert tracked.status == 0
    assert "Paid 1,000 sat" in tracked.out
    assert "Part 1 arrived" in tracked.err
    assert len(channelctl("trackpayment", name, "--json").out.splitlines()) == 2
    assert channelctl("payments", "cancel", name).status == 7
    for verb in ("show", "track", "cancel"):
        assert channelctl("payments", verb, "ffff").status == 3
        assert channelctl("payments", verb, "ab" * 32).status == 3


def test_sendpayment_as_lncli_users_type_it(channelctl: Channelctl, daemon: Daemon) -> None:
    channel_id = daemon.usable_channel()
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000_000))
    number = str(123 << 40 | 1 << 16)
    flags = ("--outgoing_chan_id", number, "--last_hop", LAST_HOP, "--cltv_limit", "400", "--max_parts", "2", "--force")
    assert channelctl("sendpayment", "--pay_req", text, *flags).status == 0
    sent = channelctl("sendpayment", "--dest", PEER, "--amt", "5", "--keysend", "--data", "65537=aa,65539=bb")
    assert sent.status == 0, sent
    by_invoice, by_key = daemon.node.orders
    assert (by_invoice.limits.outgoing_channel_ids, by_invoice.limits.max_cltv_blocks) == ((channel_id,), 400)
    assert isinstance(by_key, KeysendOrder)
    assert by_key.custom_records == ((65_537, b"\xaa"), (65_539, b"\xbb"))
    assert channelctl("sendpayment", PEER, "5").status == 2
    assert channelctl("sendpayment", PEER, "5", "--keysend", "--pay_req", text).status == 2
