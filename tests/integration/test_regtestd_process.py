"""`regtestd` as a process: options, signals, a kill in the middle."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.integration.regtestd_support import Client
from wallet.regtest.__main__ import main
from wallet.regtest.errors import StartupError
from wallet.regtest.options import Options, usage

BURN = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"


class Daemon:
    """A regtestd in its own process."""

    def __init__(self, process: asyncio.subprocess.Process, datadir: Path) -> None:
        self.process = process
        self.datadir = datadir

    def client(self) -> Client:
        user, _, password = (self.datadir / "regtest" / ".cookie").read_text().partition(":")
        port = (self.datadir / "regtest" / "rpcport").read_text().strip()
        return Client(f"http://127.0.0.1:{port}", (user, password))

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await self.process.wait()


async def launch(datadir: Path, *options: str) -> Daemon:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "wallet.regtest",
        f"-datadir={datadir}",
        "-rpcport=0",
        *options,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line.startswith(b"regtestd is ready: http://127.0.0.1:"), line
    return Daemon(process, datadir)


@asynccontextmanager
async def running(datadir: Path, *options: str) -> AsyncIterator[Daemon]:
    daemon = await launch(datadir, *options)
    try:
        yield daemon
    finally:
        if daemon.process.returncode is None:
            daemon.process.kill()
            await daemon.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    async with running(tmp_path) as daemon:
        async with daemon.client() as rpc:
            txid = await rpc.sendtoaddress(BURN, 1)
        assert await daemon.end(number) == 0
    async with running(tmp_path) as daemon, daemon.client() as rpc:
        assert await rpc.getrawmempool() == [txid]


async def test_stop_over_rpc_ends_waiting_calls(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, daemon.client() as rpc, daemon.client() as other:
        waiting = asyncio.ensure_future(other.waitfornewblock())
        for _ in range(1000):
            if len((await rpc.getrpcinfo())["active_commands"]) == 2:
                break
        assert await rpc.stop() == "Bitcoin Core stopping"
        assert (await waiting)["height"] == 0
        assert await daemon.process.wait() == 0


async def test_a_kill_loses_no_block(tmp_path: Path) -> None:
    hashes: list[str] = []
    for count in (3, 1, 120):
        async with running(tmp_path) as daemon, daemon.client() as rpc:
            assert await rpc.getblockcount() == len(hashes)
            hashes += await rpc.generatetoaddress(count, await rpc.getnewaddress())
            assert await daemon.end(signal.SIGKILL) == -signal.SIGKILL
    async with running(tmp_path) as daemon, daemon.client() as rpc:
        assert await rpc.getbestblockhash() == hashes[-1]
        assert (await rpc.gettxoutsetinfo())["txouts"] == 124
        assert await rpc.getbalance() == 24 * 50
        await rpc.invalidateblock(hashes[110])
        assert await daemon.end(signal.SIGKILL) == -signal.SIGKILL
    async with running(tmp_path) as daemon, daemon.client() as rpc:
        assert await rpc.getbestblockhash() == hashes[109]


async def test_a_kill_while_it_mines(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, daemon.client() as rpc, daemon.client() as other:
        mining = asyncio.ensure_future(other.generatetoaddress(100_000, BURN))
        reached = (await rpc.waitforblockheight(50))["height"]
        await daemon.end(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await mining
    async with running(tmp_path) as daemon, daemon.client() as rpc:
        height = await rpc.getblockcount()
        assert height >= reached
        (tip,) = await rpc.generatetoaddress(1, BURN)
        assert (await rpc.getblock(tip))["height"] == height + 1
        assert (await rpc.gettxoutsetinfo())["txouts"] == height + 1


async def test_a_second_daemon_on_the_same_data_gives_up_with_a_sentence(tmp_path: Path) -> None:
    async with running(tmp_path):
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wallet.regtest", f"-datadir={tmp_path}", stderr=asyncio.subprocess.PIPE
        )
        _, said = await second.communicate()
    assert second.returncode == 1
    assert said.startswith(b"Error: Cannot obtain a lock on directory")


async def test_in_the_background(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "wallet.regtest", f"-datadir={tmp_path}", "-rpcport=0", "-daemon")
    first = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await first.communicate()
    assert first.returncode == 0
    assert said.startswith(b"regtestd is ready: ")
    second = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await second.communicate()
    assert second.returncode == 1
    assert said.startswith(b"Error: Cannot obtain a lock on directory")
    async with Daemon(first, tmp_path).client() as rpc:
        assert await rpc.stop() == "Bitcoin Core stopping"
    with (tmp_path / "regtest" / ".lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
    assert not (tmp_path / "regtest" / ".cookie").exists()


# Options.


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-help", "-h", "-?"):
        assert main([word]) == 0
        assert capsys.readouterr().out == usage()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("regtestd ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-nonsense"], "Invalid parameter -nonsense"),
        (["word"], "unexpected argument 'word'"),
        (["--rpcport"], "Option --rpcport needs a value"),
        (["-rpcport=x"], "-rpcport=x is not a number"),
        (["-rpcport=70000"], "-rpcport=70000 is not a port number"),
        (["-block-interval=x"], "-block-interval=x is not a number of seconds"),
        (["-minrelaytxfee=much"], "-minrelaytxfee=much is not a number"),
        (["-conf=/nowhere/bitcoin.conf"], "The configuration file /nowhere/bitcoin.conf does not exist"),
    ],
)
def test_wrong_options(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert sentence in capsys.readouterr().err


def test_options_in_bitcoinds_spelling_and_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "bitcoin.conf").write_text(
        "# comment\nrpcuser=alice\nrpcpassword=one\nregtest=1\n[main]\nrpcport=1\n[regtest]\nrpcport=19000\ntxindex=1\n"
    )
    options = Options(
        f"-datadir={tmp_path} -regtest --minrelaytxfee 0.00000100 -nolisten -fallbackfee=0.0002 -rpcpassword=two"
        " -zmqpubrawtx=tcp://127.0.0.1:1 --block-interval 2.5".split()
    )
    settings = options.settings()
    assert (settings.rpc_user, settings.rpc_password, settings.rpc_port) == ("alice", "two", 19000)
    assert settings.policy.min_relay_fee == 100
    assert settings.zmq == (("pubrawtx", "tcp://127.0.0.1:1"),)
    assert settings.block_interval_seconds == 2.5
    (tmp_path / "bitcoin.conf").write_text("nonsense=1\n")
    with pytest.raises(StartupError, match="line 1: unknown option nonsense"):
        Options([f"-datadir={tmp_path}"])
