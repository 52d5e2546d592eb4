"""What our invoices say of a channel that is not announced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import replace

from channeld.bolt.features import ChannelType
from channeld.node.route_hints import hop_to_us, route_hints
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


def normal(number: int, **changes: Any) -> Any:
    """A channel in use: announced or not, with an alias or not."""
    state = open_pair().alice.funded
    params = replace(state.params, **{key: changes.pop(key) for key in ("announce", "channel_type") if key in changes})
    state = replace(state, params=params, scid=number, **changes)
    return SimpleNamespace(state=state, peer_id=b"\x02" * 33, channel_id=bytes([number]) * 32)


def hinted(drivers: list[Any], *announced: int) -> list[int]:
    """The channels that an invoice would name, where others know of these."""
    channels = SimpleNamespace(all=lambda: iter(drivers), update_of_peer=lambda channel_id: None)
    hints = route_hints(cast(Any, channels), lambda channel_id: channel_id[0] in announced)
    return [hop.short_channel_id for (hop,) in hints]


def test_who_has_no_public_channel_yet_is_found_by_hints() -> None:
    # BOLT 11, "if there is NOT a public channel associated with its public key: MUST include at least one `r` field."
    private = normal(1, announce=False, remote_alias=77)
    young, other = normal(2, announce=True, remote_alias=78), normal(3, announce=True, remote_alias=None)
    assert hinted([private, young, other]) == [77, 78, 3]
    assert hinted([private, young, other], 2) == [77]
    assert hinted([young, other], 2) == []
    assert hinted([young, other], 2, 3) == []


def test_the_real_name_of_a_channel_with_an_alias_is_told_to_nobody() -> None:
    # BOLT 2, "if `channel_type` has `option_scid_alias` set: MUST NOT use the real `short_channel_id` in BOLT 11 `r`
    # fields."
    kind = ChannelType(scid_alias=True).to_bytes()
    assert hinted([normal(1, announce=False, channel_type=kind, remote_alias=None)]) == []
    assert hinted([normal(1, announce=False, channel_type=kind, remote_alias=77)]) == [77]
    assert hinted([normal(1, announce=False, remote_alias=None)]) == [1]


def test_the_terms_that_the_peer_told() -> None:
    update = SimpleNamespace(fee_base_msat=3, fee_proportional_millionths=4, cltv_expiry_delta=5)
    found = hop(update)
    assert (found.fee_base_msat, found.fee_proportional_millionths, found.cltv_expiry_delta) == (3, 4, 5)
