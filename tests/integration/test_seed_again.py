"""A seed that is used again, without the database that went with it: no channel gets secrets that a peer may know."""

from __future__ import annotations

from pathlib import Path

from tests.integration.world import TestNode, World, world_in

AGAIN = ("-wal", "-shm", "")


async def opened(world: World, alice: TestNode, bob: TestNode, number: int) -> list[int]:
    """Opens channels, and tells the numbers that alice's secrets of them come from."""
    for _ in range(number):
        await world.open(alice, bob, 100_000)
    return [driver.channel_key for driver in alice.runtime.channels.all()]


async def test_channels_of_a_restored_seed_have_new_secrets(tmp_path: Path) -> None:
    """Who was told a channel's revocation secrets could punish the commitments of a new channel that has the same."""
    async with world_in(tmp_path) as world:
        alice, bob = await world.node("alice"), await world.node("bob")
        await world.fund(alice, 1_000_000)
        before = await opened(world, alice, bob, 2)
        assert before == sorted(before), "the oldest is first"
        database = tmp_path / "alice" / "test.sqlite"
        await alice.stop()
        for suffix in AGAIN:
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        await alice.start()
        await world.fund(alice, 1_000_000)
        after = await opened(world, alice, bob, 1)
        assert not set(before) & set(after)
        (first, *_), (again,) = before, after
        secrets = alice.runtime.identity.channel_secrets
        assert secrets(first).per_commitment_secret(0) != secrets(again).per_commitment_secret(0)
