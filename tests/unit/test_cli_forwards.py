"""`channelctl policy` and `forwards` against a daemon's API."""

from __future__ import annotations

from tests.cli_support import Channelctl, Daemon


def test_forwards_say_what_was_earned(channelctl: Channelctl) -> None:
    shown = channelctl("forwards").out
    assert "100" in shown
    assert "1.500 sat" in shown
    for name in ("forwards", "fwdinghistory"):
        (forward,) = channelctl.json(name)["forwards"]
        assert (forward["incoming_msat"], forward["outgoing_msat"], forward["fee_msat"]) == (101_500, 100_000, 1_500)
        assert forward["payment_hash"] == "22" * 32
    assert channelctl.json("forwards", "--offset", "1")["forwards"] == []
    assert "Nothing was forwarded" in channelctl("forwards", "--offset", "1").out


def test_policies_are_shown_and_set(channelctl: Channelctl, daemon: Daemon) -> None:
    assert "no open channels" in channelctl("policy").out
    daemon.usable_channel(200_000)
    (shown,) = channelctl.json("policy", "show")["policies"]
    assert shown["fee_base_msat"] == 1000
    options = ("--base", "2sat", "--ppm", "250", "--delta", "40", "--min", "1000", "--max", "100000sat")
    for channel in ("all", shown["channel_id"][:8]):
        (policy,) = channelctl.json("policy", "set", channel, *options)["policies"]
        assert policy == {
            "channel_id": shown["channel_id"],
            "fee_base_msat": 2_000,
            "fee_proportional_millionths": 250,
            "cltv_expiry_delta_blocks": 40,
            "htlc_minimum_msat": policy["htlc_minimum_msat"],
            "htlc_maximum_msat": 100_000_000,
        }
    assert "250" in channelctl("policy", "set", "all", *options).out
    assert channelctl("policy", "set", "nothing").status != 0
