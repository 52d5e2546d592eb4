"""Strangers flood a daemon with all they have, from a process of their own: its memory and its sockets stay bounded,
and an honest peer's payments go through, both ways.

Times are not asserted, a machine may be busy; `python -m tests.bench.floods` measures them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from channeld.node import transport
from channeld.node.openings import MAX_UNPROVEN
from channeld.node.peers import MAX_PEERS_WITHOUT_CHANNELS
from tests.bad_input_support import Net, net_in
from tests.flood_support import Effect, under

pytestmark = pytest.mark.asyncio(loop_scope="module")

MORE_MB = 80
"""What a flood may cost at most. Without limits each of these takes that much in a second or two, or grows for ever."""
OWN_SOCKETS = 40
"""What a daemon has open without any flood, and some to spare."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Net]:
    async with net_in(tmp_path_factory.mktemp("lab")) as made:
        yield made


async def flooded(net: Net, tmp_path: Path, *kinds: str) -> Effect:
    """What it did to Bob, who is the same process as before, and owes nobody anything."""
    async with net.nothing_lost():
        effect = await under(net, tmp_path / "flooder.log", *kinds, rounds=3)
    assert all(effect.sent.values()), effect
    assert effect.grown_mb < MORE_MB, effect
    return effect


async def test_a_thousand_half_open_connections(net: Net, tmp_path: Path) -> None:
    effect = await flooded(net, tmp_path, "half_open=1000", "bad_handshakes")
    assert effect.sent["half_open"] >= 1000
    assert effect.ended["half_open"] >= 1000 - transport.MAX_HANDSHAKES, "the oldest had to go"
    assert effect.sockets_peak <= transport.MAX_HANDSHAKES + OWN_SOCKETS


async def test_junk_at_full_speed(net: Net, tmp_path: Path) -> None:
    """With newcomers in between, whose first words cannot be read: some of their sockets stay for a while."""
    effect = await flooded(net, tmp_path, "newcomers=40", "unknown", "pings", "about_channels", "errors")
    assert effect.ended["newcomers"]
    assert effect.sockets_peak <= transport.MAX_HANDSHAKES + transport.MAX_LINGERING + OWN_SOCKETS


async def test_peers_that_do_not_read(net: Net, tmp_path: Path) -> None:
    """A ping of six bytes asks for 64 kB; whoever does not take the answers may keep a megabyte waiting."""
    effect = await flooded(net, tmp_path, "deaf=40")
    assert effect.grown_mb < 40 * transport.MAX_UNSENT_BYTES / (1 << 20) + 20, effect


async def test_a_storm_of_gossip_and_onion_messages(net: Net, tmp_path: Path) -> None:
    await flooded(net, tmp_path, "updates", "announcements", "nodes", "queries", "onion_messages=8")


async def test_proposals_without_end(net: Net, tmp_path: Path) -> None:
    """More nodes than are borne propose channels and stay; that they did so does not make peers of them."""
    effect = await flooded(net, tmp_path, f"openings={MAX_PEERS_WITHOUT_CHANNELS + 100}")
    assert effect.ended["openings"], "too many peers"
    assert effect.peers_peak <= MAX_PEERS_WITHOUT_CHANNELS + 1
    assert effect.openings_peak <= MAX_UNPROVEN
    assert effect.openings_peak > MAX_UNPROVEN // 2, "it was a flood"
