"""What our invoices say of a channel that is not announced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import replace

from channeld.node.route_hints import hop_to_us
from tests.machine.harness import open_pair

COMMON_DEFAULTS = {"CLN": (1, 10, 34), "Eclair": (1000, 200, 144), "LDK": (1000, 0, 72), "LND": (1000, 1, 80)}


def hop(update: Any) -> Any:
    """Our channel as a hop from the peer, by this `channel_update` of the peer's."""
    peer_id = b"\x02" * 33
    driver = SimpleNamespace(state=replace(open_pair().alice.funded, remote_alias=77), peer_id=peer_id)
    found = hop_to_us(cast(Any, driver), update)
    assert found is not None
    assert (found.pubkey, found.short_channel_id) == (peer_id, 77)
    return found


def test_before_the_peer_told_its_terms_the_hint_offers_enough_for_common_nodes() -> None:
    found = hop(None)
    for base_msat, millionths, blocks in COMMON_DEFAULTS.values():
        assert found.fee_base_msat >= base_msat
        assert found.fee_proportional_millionths >= millionths
        assert found.cltv_expiry_delta >= blocks


def test_the_terms_that_the_peer_told() -> None:
    update = SimpleNamespace(fee_base_msat=3, fee_proportional_millionths=4, cltv_expiry_delta=5)
    found = hop(update)
    assert (found.fee_base_msat, found.fee_proportional_millionths, found.cltv_expiry_delta) == (3, 4, 5)
