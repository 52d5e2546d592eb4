"""`channelctl` when things go wrong: a sentence, what to do next, an exit status; no traceback, nothing paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from channeld.cli import failures, session
from channeld.cli.main import run
from channeld.paths import data_paths
from tests.cli_support import Channelctl, Daemon, started_daemon
from tests.fake_invoices import PEER_ID
from watchtower.rpc.tls import Certificate

PEER = PEER_ID.hex()
OTHER = "02" + "33" * 32


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with started_daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def channelctl(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> Channelctl:
    """Reads the file descriptors, so that nothing that gRPC writes goes unseen."""
    return Channelctl(daemon.paths, capfd.readouterr)


def command(daemon: Daemon, *arguments: str) -> list[str]:
    """The same as a program of its own."""
    return [sys.executable, "-m", "channeld.cli.main", "--datadir", str(daemon.paths.root), *arguments]


# What users do wrong


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pai",), "No such command 'pai'. Did you mean 'pay'?"),
        (("pay",), "Missing argument 'INVOICE'"),
        (("pay", "x", "y"), "unexpected extra argument"),
        (("wallet", "send", "bcrt1qx", "0"), "must be more than nothing"),
        (("wallet", "send", "bcrt1qx", "-5"), "-5"),
        (("wallet", "send", "bcrt1qx", "1.5sat"), "not a whole number of satoshi"),
        (("wallet", "send", "bcrt1qx", "20k"), "write it as 1000sat"),
        (("wallet", "send", "bcrt1qx", "5", "--sat-per-vbyte", "fast"), "not a feerate"),
        (("wallet", "send", "mainnet-address", "5"), "is not an address of this network"),
        (("wallet", "bump", "xyz", "--sat-per-vbyte", "5"), "is not a transaction id"),
        (("peer", "connect", "02ab"), "is not a node id"),
        (("peer", "connect", OTHER), "Say where the node is"),
        (("peer", "connect", OTHER, "host:x"), "is not an address"),
        (("channel", "show", "zz"), "'zz' names no channel"),
        (("channel", "show", "ab:x"), "'ab:x' names no channel"),
        (("channel", "open", PEER, "5000"), "There is no connection"),
        (("invoice", "create", "0"), "must be more than nothing"),
        (("invoice", "create", "5", "--expiry", "never"), "is not a time"),
        (("invoice", "create", "5", "--preimage", "ab"), "is not a preimage"),
        (("invoice", "list", "--limit", "0"), "--limit"),
        (("decode", "nonsense"), "This is no invoice"),
        (("pay", "nonsense"), "This is no invoice"),
        (("addinvoice", "5", "--amt", "5"), "given more than once"),
        (("--network", "../x", "info"), "is no network"),
        (("--network", "moonnet", "info"), "There are mainnet, testnet, signet, regtest."),
        (("info", "--datadir", "/tmp"), "It goes before the command: `channelctl --datadir ...`."),
        (("invoice", "create", "0,5btc"), "Invalid value for 'AMOUNT': '0,5btc' may mean two amounts"),
        (("--rpcserver", "no-such-host.invalid:1", "info"), "There is no host"),
        (("--rpcserver", "127.0.0.1:http", "info"), "is not an address"),
        (("--rpcserver", "127.0.0.1:99999", "info"), "is not an address"),
        (("--rpcserver", "127.0.0.1", "info"), "has no port"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(channelctl: Channelctl, arguments: tuple[str, ...], sentence: str) -> None:
    ran = channelctl(*arguments)
    assert ran.status in (2, 7)
    assert ran.out == ""
    assert sentence in ran.err
    assert "Traceback" not in ran.err


def test_an_error_is_json_too(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel(100_000)
    for arguments, status, sentence, hint in (
        (("channel", "show", "00" * 32), failures.NOT_FOUND, f"There is no channel {'00' * 32}.", "channel list"),
        (("invoice", "create", "x"), failures.USAGE, "Invalid value for 'AMOUNT'", "invoice create --help"),
        (("pay", daemon.unknown_invoice(1_000)), failures.FAILED, "The payment failed", ""),
    ):
        for placed in ((*arguments, "--json"), ("--json", *arguments)):
            ran = channelctl(*placed)
            told = json.loads(ran.err.splitlines()[-1])
            assert (ran.status, told["exit_status"]) == (status, status)
            assert sentence in told["error"]
            assert hint in told["hint"]


def test_each_status_has_its_exit_status(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel(100_000)
    node = daemon.node
    paid, dear = daemon.do(lambda: (node.remote_invoice(1_000), node.remote_invoice(10**12)))
    foreign = daemon.do(lambda: node.remote_invoice(1_000, network="mainnet"))
    expired = daemon.do(lambda: node.remote_invoice(1_000, created_seconds=1))
    assert channelctl("pay", paid).status == failures.OK
    cases = [
        (("pay", daemon.unknown_invoice(1_000)), failures.FAILED, "The payment failed"),
        (("pay", foreign), failures.USAGE, "The invoice is for mainnet"),
        (("channel", "open", PEER, "5000"), failures.USAGE, "at least 20,000 sat"),
        (("channel", "show", "00" * 32), failures.NOT_FOUND, "There is no channel"),
        (("invoice", "show", "00" * 32), failures.NOT_FOUND, "There is no invoice"),
        (("payments", "show", "ffff"), failures.NOT_FOUND, "There is no payment"),
        (("pay", dear), failures.NOT_ENOUGH, "No channel can send"),
        (("channel", "open", PEER, "1btc"), failures.NOT_ENOUGH, "The wallet has"),
        (("peer", "connect", f"{OTHER}@192.0.2.1:9"), failures.UNAVAILABLE, "Nobody answers"),
        (("pay", paid), failures.ALREADY_EXISTS, "paid already"),
        (("pay", expired), failures.NOT_NOW, "has expired"),
        (("disconnect", PEER), failures.NOT_NOW, "There are channels with this peer"),
    ]
    for arguments, status, sentence in cases:
        ran = channelctl(*arguments)
        assert (ran.status, sentence in ran.err) == (status, True), ran


def test_a_bug_of_the_daemon_names_its_log(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.node.bug = ZeroDivisionError("inside")
    ran = channelctl("info")
    assert ran.status == failures.FAILED
    assert "under the error id" in ran.err
    assert "inside" not in ran.err


def test_a_daemon_that_is_behind_is_mentioned(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.node.synced = False
    assert "layer 1 is away since" in channelctl("wallet", "send", "bcrt1qsomebody", "1000").err
    assert "not in step" in channelctl("info").out


# Where the daemon is not


def test_no_daemon(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran = Channelctl(data_paths("regtest", tmp_path), capfd.readouterr)("info")
    assert ran.status == failures.UNAVAILABLE
    assert "The daemon is not running: there is no" in ran.err
    assert f"`channeld --network mainnet --datadir {tmp_path}`" in ran.err


def test_a_daemon_that_was_killed(channelctl: Channelctl, daemon: Daemon) -> None:
    address = daemon.paths.grpc_address.read_text()
    daemon.stop()
    daemon.paths.grpc_address.write_text(address)
    ran = channelctl("info")
    assert ran.status == failures.UNAVAILABLE
    assert f"The daemon is not running at {address.strip()}." in ran.err
    assert "`channeld --network regtest" in ran.err


def test_a_daemon_that_was_stopped(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.stop()
    ran = channelctl("info")
    assert ran.status == failures.UNAVAILABLE
    assert "`channeld --network regtest --datadir" in ran.err


def test_several_networks(channelctl: Channelctl, daemon: Daemon) -> None:
    other = data_paths("signet", daemon.paths.root)
    other.directory.mkdir()
    other.grpc_address.write_text("127.0.0.1:1\n")
    ran = channelctl("info")
    assert ran.status == failures.USAGE
    assert "regtest, signet" in ran.err
    assert channelctl("--network", "regtest", "info").status == 0


def test_the_wrong_token_certificate_or_file(channelctl: Channelctl, daemon: Daemon, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("00" * 32)
    other = data_paths("other", tmp_path)
    other.directory.mkdir()
    Certificate(other).load_or_make()
    cases = [
        (("--token-file", str(wrong)), failures.NOT_ALLOWED, f"does not accept the token in {wrong}"),
        (("--token-file", "/nonexistent"), failures.UNAVAILABLE, "There is no token /nonexistent"),
        (("--token-file", str(tmp_path)), failures.NOT_ALLOWED, "cannot be read"),
        (("--tls-cert", str(other.tls_cert)), failures.NOT_ALLOWED, "is not the certificate of the daemon"),
        (("--tls-cert", str(wrong)), failures.NOT_ALLOWED, "is not a certificate"),
    ]
    for options, status, sentence in cases:
        ran = channelctl(*options, "info")
        assert (ran.status, sentence in ran.err, ran.out) == (status, True, ""), ran
    ran_alone = subprocess.run(
        command(daemon, "--tls-cert", str(other.tls_cert), "info"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert len(ran_alone.stderr.splitlines()) == 2, "gRPC keeps quiet"


def test_what_is_no_daemon(channelctl: Channelctl, daemon: Daemon) -> None:
    address = daemon.wait_for(_plain_server())
    ran = channelctl("--rpcserver", address, "info")
    assert ran.status == failures.UNAVAILABLE
    assert "does not speak TLS" in ran.err


async def _plain_server() -> str:
    import asyncio

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    return f"{host}:{port}"


def test_everything_can_be_named(
    daemon: Daemon, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = daemon.paths.grpc_address.read_text().strip()
    cert, token = str(daemon.paths.tls_cert), str(daemon.paths.token)
    assert run(["--rpcserver", address, "--tlscertpath", cert, "--token-file", token, "info"]) == 0
    for name, value in (("RPCSERVER", address), ("TLS_CERT", cert), ("TOKEN_FILE", token), ("DATADIR", "/nonexistent")):
        monkeypatch.setenv(f"CHANNELD_{name}", value)
    assert run(["info"]) == 0
    for name in ("RPCSERVER", "TLS_CERT", "TOKEN_FILE"):
        monkeypatch.delenv(f"CHANNELD_{name}")
    assert run(["info"]) == failures.UNAVAILABLE
    monkeypatch.setenv("CHANNELD_DATADIR", str(daemon.paths.root))
    monkeypatch.setenv("CHANNELD_NETWORK", "regtest")
    assert run(["info"]) == 0


# When the connection breaks while money moves


def test_a_daemon_that_restarts_in_the_middle_pays_once(
    channelctl: Channelctl, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RETRY_AFTER_SECONDS", (0.05,) * 40)
    daemon.usable_channel()
    daemon.do(daemon.node.pay_gate.clear)
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000))

    def restart() -> None:
        daemon.wait_for(daemon.node.paying.wait())
        daemon.stop()
        daemon.start()  # at another port
        daemon.do(daemon.node.pay_gate.set)

    restarting = threading.Thread(target=restart)
    restarting.start()
    ran = channelctl("pay", text)
    restarting.join()
    assert ran.status == 0
    assert "Paid 1 sat" in ran.out
    assert "asking again (the money moves once at most)" in ran.err
    assert daemon.node.calls["pay"] == 2
    (channel,) = daemon.node.channels.values()
    assert channel.remote_msat == 1_000


def test_a_daemon_that_stays_away_leaves_the_key(
    channelctl: Channelctl, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RETRY_AFTER_SECONDS", (0.01, 0.01))
    daemon.usable_channel()
    daemon.do(daemon.node.pay_gate.clear)
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000))

    def stop() -> None:
        daemon.wait_for(daemon.node.paying.wait())
        daemon.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    ran = channelctl("pay", text)
    stopping.join()
    assert ran.status == failures.UNAVAILABLE
    assert "It is not known whether the daemon did it." in ran.err
    key = ran.err.partition("--idempotency-key ")[2].partition(":")[0]
    daemon.start()
    daemon.do(daemon.node.pay_gate.set)
    assert channelctl("pay", text, "--idempotency-key", key).status == 0
    (channel,) = daemon.node.channels.values()
    assert channel.remote_msat == 1_000


def test_an_answer_of_the_daemon_is_not_asked_for_again(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel()
    daemon.do(lambda: daemon.node.cut_off())
    ran = channelctl("channel", "close", "123x1x0")
    assert ran.status == failures.UNAVAILABLE
    assert "The peer is away" in ran.err
    assert daemon.node.calls["close_channel"] == 1


# As a program of its own


def test_ctrl_c_while_paying(daemon: Daemon) -> None:
    daemon.usable_channel()
    daemon.do(daemon.node.pay_gate.clear)
    text = daemon.do(lambda: daemon.node.remote_invoice(1_000))
    program = subprocess.Popen(command(daemon, "pay", text), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    daemon.wait_for(daemon.node.paying.wait())
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert (program.returncode, out) == (130, "")
    assert "You stopped waiting; the payment goes on" in err
    assert "channelctl payments cancel " in err or "--idempotency-key" in err
    assert "Traceback" not in err
    daemon.do(daemon.node.pay_gate.set)
    daemon.wait_for(daemon.node.settled())
    assert [payment.state for payment in daemon.node.payments.values()] == ["succeeded"]


def test_ctrl_c_while_following_events(daemon: Daemon) -> None:
    following = threading.Event()
    daemon.when_followed(following.set)
    program = subprocess.Popen(command(daemon, "events"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert following.wait(20)
    daemon.do(lambda: daemon.node.emit("chain.block", "A block."))
    assert program.stdout is not None
    assert "A block." in program.stdout.readline()
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (130, "")


def test_a_reader_that_has_seen_enough(daemon: Daemon) -> None:
    for number in range(3):
        daemon.do(lambda number=number: daemon.node.emit("chain.block", f"Block {number}."))  # type: ignore[misc]
    reading, writing = os.pipe()
    os.close(reading)
    program = subprocess.Popen(
        command(daemon, "events", "--since", "0", "--json"), stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    _, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (1, "")


def test_it_loads_only_what_it_needs() -> None:
    """Half of what it would load takes longer than all that it does."""
    script = (
        "import sys; from channeld.cli.main import run; run(['--version']);"
        "print(*sorted({'grpc', 'rich', 'google.protobuf', 'cryptography', 'sqlalchemy', 'asyncio', 'channeld.api',"
        "'channeld.node', 'channeld.storage', 'embit', 'coincurve'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout.splitlines()[1] in ("", "asyncio")


def test_the_shell_completes_commands() -> None:
    environment = {
        **os.environ,
        "_CHANNELCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "channelctl wa",
        "COMP_CWORD": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "channeld.cli.main"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert set(ran.stdout.split()) == {"wallet", "walletbalance"}
