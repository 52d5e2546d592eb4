"""`channeld` as a process: settings, sentences for what cannot be, the seed, start and stop, kill -9."""

from __future__ import annotations

import json
import logging
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace

from channeld.__main__ import main
from channeld.channel.env import ChannelPolicy
from channeld.config import load_config
from channeld.daemon import Daemon, load_or_make_seed
from channeld.lab import Lab, ProcessEnded
from channeld.paths import DataPaths, data_paths
from channeld.storage import make_engine, upgrade
from channeld.v1 import payments_pb2
from wallet.coins import GAP_LIMIT
from wallet.keys import Seed
from wallet.seedfile import read_seed, write_seed
from watchtower.__main__ import main as watchtower_main
from watchtower.rpc.lock import locked
from watchtower.rpc.settings import ConfigError

WORDS = "abandon " * 11 + "about"


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """`main` sets up logging for a whole process; here that process goes on."""
    before = logging.getLogger().handlers[:], logging.getLogger().level
    configured = structlog.get_config()
    yield
    for handler in logging.getLogger().handlers[:]:
        if handler not in before[0]:
            logging.getLogger().removeHandler(handler)
            handler.close()
    logging.getLogger().handlers[:], logging.getLogger().level = before
    structlog.configure(**configured)


# --- settings -----------------------------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "channeld.toml").write_text('alias = "file"\ncolor = "112233"\nnetwork = "regtest"\n')
    monkeypatch.setenv("CHANNELD_ALIAS", "environment")
    assert load_config(["--datadir", str(tmp_path)]).alias == "environment"
    config = load_config(["--datadir", str(tmp_path), "--alias", "flag"])
    assert (config.alias, config.color, config.network) == ("flag", "112233", "regtest")
    assert config.paths.directory == tmp_path / "regtest"
    monkeypatch.setenv("CHANNELD_DATADIR", str(tmp_path))
    assert load_config([]).color == "112233"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "moonnet"], "network cannot be 'moonnet'"),
        (["--alias", "x" * 33], "at most 32 bytes"),
        (["--color", "blue"], "six hex digits"),
        (["--min-depth", "-1"], "min_depth cannot be"),
        (["--gap-limit", "19"], "gap_limit cannot be '19': .* 20"),
        (["--gap-limit", "10001"], "gap_limit cannot be '10001': .* 10000"),
        (["--max-feerate-per-kw", "2499"], "max_feerate_per_kw cannot be '2499': .* 2500"),
        (["--max-feerate-per-kw", "1000001"], "max_feerate_per_kw cannot be '1000001': .* 1000000"),
    ],
)
def test_wrong_settings_are_told(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(["--datadir", str(tmp_path), *arguments])


def test_limits_are_the_nodes_own_unless_they_are_set(tmp_path: Path) -> None:
    plain = Daemon(load_config(["--datadir", str(tmp_path)]))._settings(None)
    assert (plain.gap_limit, plain.policy.max_feerate_per_kw) == (GAP_LIMIT, ChannelPolicy().max_feerate_per_kw)
    (tmp_path / "channeld.toml").write_text("gap_limit = 1000\n")
    given = Daemon(load_config(["--datadir", str(tmp_path), "--max-feerate-per-kw", "20000"]))._settings(None)
    assert (given.gap_limit, given.policy.max_feerate_per_kw) == (1_000, 20_000)
    assert given.policy == replace(plain.policy, max_feerate_per_kw=20_000)


def test_a_setting_that_nobody_knows_is_told(tmp_path: Path) -> None:
    (tmp_path / "channeld.toml").write_text("aliass = 'x'\n")
    with pytest.raises(ConfigError, match="no setting 'aliass'"):
        load_config(["--datadir", str(tmp_path)])


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--datadir", "--network", "--listen", "--rpclisten", "--bitcoind-url", "--alias"):
        assert flag in text


def test_a_variable_with_a_typing_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELD_SERVICE_HOST", "10.0.0.1")  # as Kubernetes sets it for a service of that name
    monkeypatch.setenv("CHANNELD_TOKEN_FILE", "/run/token")  # a client's
    load_config(["--datadir", str(tmp_path)])
    monkeypatch.setenv("CHANNELD_SEED_WORD", "abandon")
    with pytest.raises(ConfigError, match=r"CHANNELD_SEED_WORD in the environment .* mean CHANNELD_SEED_WORDS"):
        load_config(["--datadir", str(tmp_path)])


@pytest.mark.parametrize("daemon", [main, watchtower_main])
def test_help_names_no_python_and_no_empty_default(
    daemon: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for flag, program in (("--help", "usage: "), ("--version", "")):
        with pytest.raises(SystemExit) as caught:
            daemon([flag])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith((f"{program}channeld ", f"{program}watchtowerd "))
        for ugly in (" str", " int", "Path", "float", "default: )", "None", "(default: (", "no-show-seed"):
            assert ugly not in text


def test_structlog_comes_without_rich() -> None:
    code = (
        "import sys; from watchtower.rpc.lean import import_structlog; import_structlog(); "
        "assert 'structlog' in sys.modules and 'rich' not in sys.modules; import rich.console"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- sentences ----------------------------------------------------------------------------------------------------


class Failing:
    """Starts that end with a sentence."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.paths = data_paths("regtest", directory)
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        common = ["--datadir", str(self.directory), "--network", "regtest", "--bitcoind-url", "http://127.0.0.1:1"]
        given = [*common, "--listen", "127.0.0.1:0", "--rpclisten", "127.0.0.1:0", *arguments]
        assert main(given) == 1
        said = [line for line in self._capsys.readouterr().err.splitlines() if line.startswith("channeld: ")]
        assert len(said) == 1
        return said[0]


@pytest.fixture
def failing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Failing:
    return Failing(tmp_path, capsys)


def test_a_data_directory_in_use(failing: Failing) -> None:
    with locked(failing.paths.lock, "channeld"):
        assert "is in use by another channeld (process" in failing()


def test_a_wrong_seed_word(failing: Failing) -> None:
    said = failing("--seed-words", WORDS.replace("about", "abaut"))
    assert "word 12, 'abaut', is not in the BIP 39 list (did you mean about" in said
    assert "checksum" in failing("--seed-words", WORDS.replace("about", "zoo"))
    assert "12, 15, 18, 21 or 24 words" in failing("--seed-words", "abandon")
    assert not failing.paths.seed.exists()


def test_a_port_in_use(failing: Failing) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen for peers on 127.0.0.1:{port}" in failing("--listen", f"127.0.0.1:{port}")
        assert f"cannot listen on 127.0.0.1:{port}: another program uses" in failing("--rpclisten", f"127.0.0.1:{port}")


def test_a_database_of_a_newer_version(failing: Failing) -> None:
    failing.paths.directory.mkdir()
    engine = make_engine(f"sqlite:///{failing.paths.database}")
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    assert "its seed file" in failing()
    failing("--listen", "nonsense")  # the seed is made from here on
    failing.paths.seed.write_text("not a seed")
    assert "is damaged" in failing()


def test_a_database_of_another_seed(failing: Failing) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failing("--listen", f"127.0.0.1:{taken.getsockname()[1]}", "--seed-words", WORDS)
    failing.paths.seed.unlink()
    failing.paths.database.rename(failing.paths.directory / "old")
    write_seed(failing.paths.seed, Seed.create(bytes(32)))
    (failing.paths.directory / "old").rename(failing.paths.database)
    assert "belongs to" in failing()


def test_wrong_addresses(failing: Failing) -> None:
    assert "listen must be HOST:PORT" in failing("--listen", "9735")
    assert "rpclisten must be HOST:PORT" in failing("--rpclisten", "127.0.0.1:99999")


# --- real processes -----------------------------------------------------------------------------------------------


def shown_seed(capfd: pytest.CaptureFixture[str], paths: DataPaths, *flags: str) -> tuple[str, ...]:
    """What `channeld --show-seed` prints."""
    capfd.readouterr()
    assert main(["--network", "regtest", "--datadir", str(paths.root), "--show-seed", *flags]) == 0
    return tuple(re.findall(r"\d+\. ([a-z]+)", capfd.readouterr().out))


def test_the_seed_is_shown_to_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load_config(["--network", "regtest", "--datadir", str(tmp_path), "--seed-password", "secret"])
    config.paths.directory.mkdir()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    seed, _ = load_or_make_seed(config)
    assert tuple(re.findall(r"\d+\. ([a-z]+)", capfd.readouterr().out)) == seed.words
    assert shown_seed(capfd, config.paths, "--seed-password", "secret") == seed.words
    arguments = ["--network", "regtest", "--datadir", str(tmp_path), "--show-seed"]
    for flags, sentence in (
        ([], "give its password with CHANNELD_SEED_PASSWORD"),
        (["--seed-password", "guess"], "password"),
        (["--network", "signet"], "the first start of channeld makes one"),
    ):
        assert main([*arguments, *flags]) == 1
        told = capfd.readouterr()
        assert sentence in told.err
        assert told.out == ""


@pytest.mark.usefixtures("cold_starts")
async def test_the_first_start_makes_a_seed_and_stopping_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Lab(tmp_path) as lab:
        alice = lab.add_daemon("alice")
        await alice.start()
        assert "--show-seed` shows them" in alice.process.output
        assert not re.search(r"\d+\. [a-z]+", alice.process.output), "this is no terminal, but perhaps a log"
        words = shown_seed(capfd, alice.paths)
        assert words == read_seed(alice.paths.seed).words
        node_id = alice.node_id
        assert stat.S_IMODE(alice.paths.seed.stat().st_mode) == 0o600
        ready = json.loads((alice.paths.directory / "ready.json").read_text())
        assert ready["node_id"] == node_id.hex()
        assert await alice.process.terminate() == 0
        assert not (alice.paths.directory / "ready.json").exists()
        assert not alice.paths.grpc_address.exists()
        await alice.start()
        assert "seed" not in alice.process.output
        assert alice.node_id == node_id

        restored = lab.add_daemon("restored", env={"CHANNELD_SEED_WORDS": " ".join(words)})
        await restored.start()
        assert restored.node_id == node_id

        other_chain = lab.add_daemon("lost")
        other_chain.process.command[other_chain.process.command.index("regtest")] = "signet"
        with pytest.raises(ProcessEnded, match="signet starts with"):
            await other_chain.start()


@pytest.mark.parametrize(("commit", "when"), [(1, "before"), (2, "after")])
async def test_kill_9_at_a_commit_loses_nothing(tmp_path: Path, commit: int, when: str) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = await lab.daemons("alice", "bob")
        await lab.fund(alice, 2_000_000)
        channel = await lab.open_channel(alice, bob, 1_000_000, push_msat=100_000_000)
        invoice = await bob.invoice(10_000_000, "crash")
        trigger = tmp_path / "crash now"
        await bob.stop()
        crash = {"CRASH_AT": str(commit), "CRASH_WHEN": when, "CRASH_FILE": str(trigger)}
        bob.process.set_module("tests.crashing_daemon", crash)
        await bob.start()
        await alice.wait_channel(channel.channel_id)
        trigger.touch()
        payment = await alice.pay(invoice.bolt11, timeout_seconds=1, idempotency_key="crash")
        assert await bob.process.wait() == -9
        bob.process.set_module("channeld")
        await bob.restart()
        await alice.wait_channel(channel.channel_id)
        payment = await alice.pay(invoice.bolt11, timeout_seconds=20, idempotency_key="crash")
        assert payment.state == payments_pb2.PAYMENT_STATE_SUCCEEDED, payment.failure
        alices = await alice.wait_channel(channel.channel_id)
        assert alices.local_msat == 890_000_000
