"""What keeps a daemon from starting or from following layer 1, beside ones that run: a sentence, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from channeld.lab import DaemonProcess, ManagedProcess
from channeld.storage.migrate import HEAD
from channeld.v1 import events_pb2
from tests.bad_input_support import Net, ctl, net_in
from tests.programs import run
from wallet.keys import Seed

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAROL_SAT = 400_000
CHAIN_BLOCKS = 120
"""More than a daemon lets go of in a reorganisation (100)."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Net]:
    async with net_in(tmp_path_factory.mktemp("lab")) as made:
        await made.lab.mine(CHAIN_BLOCKS - await made.lab.height())
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def carol(net: Net) -> DaemonProcess:
    """A third daemon, with money on chain; each test leaves it stopped, and the last one finds its money there."""
    (daemon,) = await net.lab.daemons("carol")
    await net.lab.fund(daemon, CAROL_SAT)
    await daemon.stop()
    return daemon


def with_option(command: list[str], option: str, value: str) -> list[str]:
    """The command with another value of an option."""
    place = command.index(option) + 1
    return [*command[:place], value, *command[place + 1 :]]


async def does_not_start(command: list[str], *words: str, **env: str) -> None:
    """The process ends with status 1, and the last that it says is a sentence with these words in it."""
    ran = await run(*command, env=env)
    assert ran.status == 1, ran
    assert "Traceback" not in ran.stderr
    sentence = ran.stderr.splitlines()[-1]
    assert sentence.startswith("channeld: "), ran
    for part in words:
        assert part in sentence, ran
    assert "is ready" not in ran.stdout


async def starts_and_owns_the_same(carol: DaemonProcess) -> None:
    """As if nothing had been."""
    await carol.start()
    assert (await carol.balance()).confirmed_sat == CAROL_SAT
    await carol.stop()


async def event(daemon: DaemonProcess, kind: str, words: str = "", since: int = 0) -> events_pb2.Event:
    """The first event of a kind with these words in it, from the daemon's start or an event's sequence number on."""
    async with asyncio.timeout(60), daemon.events(since) as events:
        async for happened in events:
            if happened.kind == kind and words in happened.sentence:
                return happened
    raise AssertionError(f"no {kind}")


# --- files, words and ports ---------------------------------------------------------------------------------------


async def test_a_wrong_seed_word(net: Net, carol: DaemonProcess, tmp_path: Path) -> None:
    async with net.nothing_lost():
        words = list(Seed.create(bytes(32), "").words)
        command = with_option(carol.process.command, "--datadir", str(tmp_path))
        misspelt = " ".join([*words[:4], "abandn", *words[5:]])
        await does_not_start(command, "abandn", CHANNELD_SEED_WORDS=misspelt)
        swapped = " ".join([words[-1], *words[1:-1], words[0]])
        await does_not_start(command, "checksum is wrong", CHANNELD_SEED_WORDS=swapped)
        assert not (tmp_path / "regtest" / "seed").exists()
        await does_not_start(carol.process.command, "there is a seed", CHANNELD_SEED_WORDS=" ".join(words))


async def test_a_data_directory_in_use(net: Net) -> None:
    async with net.nothing_lost():
        command = with_option(net.alice.process.command, "--listen", "127.0.0.1:0")
        await does_not_start(command, "is in use by another channeld", f"process {net.alice.process.pid}")


async def test_a_port_in_use(net: Net, carol: DaemonProcess) -> None:
    """The peers' port and the API's: those of Alice, who keeps them."""
    async with net.nothing_lost():
        command = carol.process.command
        await does_not_start(
            with_option(command, "--listen", net.alice.address), f"{net.alice.address}: Address already in use"
        )
        api = net.alice.paths.grpc_address.read_text().strip()
        await does_not_start(with_option(command, "--rpclisten", api), f"{api}: another program uses")
        assert net.alice.paths.grpc_address.read_text().strip() == api


async def test_a_database_of_a_newer_version(net: Net, carol: DaemonProcess) -> None:
    def set_version(version: str) -> None:
        with closing(sqlite3.connect(carol.paths.database)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = ?", (version,))

    async with net.nothing_lost():
        set_version("9999")
        await does_not_start(carol.process.command, "version 9999", "newer than this channeld knows")
        set_version(HEAD)
    await starts_and_owns_the_same(carol)


# --- layer 1 ------------------------------------------------------------------------------------------------------


async def test_a_chain_with_another_genesis(net: Net, carol: DaemonProcess) -> None:
    async with net.nothing_lost():
        command = with_option(carol.process.command, "--network", "signet")
        await does_not_start(command, "genesis", "signet")


async def test_a_chain_that_ends_far_below_what_was_processed(net: Net, carol: DaemonProcess, tmp_path: Path) -> None:
    """Another chain, with the same genesis, that has next to no blocks: not what this daemon's money is on."""
    other = ManagedProcess(
        "regtestd", [sys.executable, "-m", "wallet.regtest", f"-datadir={tmp_path}", "-rpcport=0"], tmp_path / "log"
    )
    await other.start()
    try:
        line = await other.wait_line("regtestd is ready")
        async with net.nothing_lost():
            command = with_option(carol.process.command, "--bitcoind-url", line.split()[3].rstrip(","))
            command = with_option(command, "--bitcoind-cookie", str(tmp_path / "regtest" / ".cookie"))
            await does_not_start(command, "is this the right bitcoind?")
    finally:
        await other.terminate()
    await starts_and_owns_the_same(carol)


async def test_a_chain_that_went_backwards(net: Net) -> None:
    """Blocks that were processed are gone, and none came in their place: the daemons wait for more, and say so."""
    await net.lab.mine(2)
    async with net.nothing_lost():
        height = await net.lab.height()
        best = await net.lab.rpc.call("getbestblockhash")
        await net.lab.rpc.call("invalidateblock", best)
        lost = []
        for daemon in (net.alice, net.bob):
            told = await event(daemon, "chain.lost", f"behind block {height}")
            assert f"layer 1 is at block {height - 1}" in told.sentence
            lost.append((daemon, told.sequence))
        shown = await ctl(net.alice, "info")
        assert f"behind block {height}" in shown.stdout, shown
        await net.pays_both_ways()
        await net.lab.rpc.call("reconsiderblock", best)
        for daemon, sequence in lost:
            await event(daemon, "chain.back", since=sequence)
        await net.lab.mine(1)
        assert (await net.alice.info()).chain_status == "following layer 1"


async def test_layer_1_is_away_at_the_start_and_in_the_middle(net: Net, carol: DaemonProcess) -> None:
    """Carol starts without it; Alice and Bob lose it, and go on paying."""
    async with net.nothing_lost():
        await net.lab.stop_layer1()
        await carol.process.start()
        # Which of its files or sockets is missed first is chance; the sentence names bitcoind.
        daemons = (net.alice, net.bob)
        lost = [(daemon, (await event(daemon, "chain.lost", "bitcoind")).sequence) for daemon in daemons]
        waiting = await carol.process.wait_line("channeld waits for layer 1")
        assert "layer 1 is away since" in waiting
        for shown in await asyncio.gather(*(ctl(daemon, "--json", "info") for daemon in (net.alice, carol))):
            assert shown.status == 0, shown
            told = json.loads(shown.stdout)
            assert told["chain_status"].startswith("layer 1 is away since"), told
        await net.pays_both_ways()
        await net.lab.start_layer1()
        await carol.wait_ready()
        for daemon, sequence in lost:
            await event(daemon, "chain.back", since=sequence)
        await net.lab.mine(1)  # returns when all three have processed it
        for daemon in (net.alice, net.bob, carol):
            assert (await daemon.info()).chain_status == "following layer 1"
        assert (await carol.balance()).confirmed_sat == CAROL_SAT
        await carol.stop()
