"""What an operator may get wrong with copies and backups: a sentence says what to do, and nothing is lost by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from channeld import backup
from channeld.__main__ import main
from channeld.backup import BackupError
from channeld.channel import machine
from channeld.channel.state import Closing, WaitingForRemoteClose
from channeld.config import Config
from channeld.node.channel_backup import ChannelsBackup, SavedChannel, backup_key, seal
from channeld.node.identity import Identity
from channeld.node.watches import Watches
from channeld.storage import make_engine, rows, upgrade
from tests.machine.harness import open_pair
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST
from wallet.keys import Keys, Seed

SEED = Seed.restore("abandon " * 11 + "about")
IDENTITY = Identity(Keys.from_seed(SEED, REGTEST).lightning_root())
PAIR = open_pair(push_msat=400_000_000)


def saved(state: bytes) -> ChannelsBackup:
    """A file with one channel."""
    params = PAIR.alice.funded.params
    channel = SavedChannel(5, params.channel_id, params.remote_node_id, "normal", state, 1_900_000_000)
    return ChannelsBackup("regtest", IDENTITY.node_id, 7, (channel,))


def settings(directory: Path, **more: str) -> Config:
    config = Config(network="regtest", datadir=directory, **more)  # type: ignore[arg-type]
    config.paths.directory.mkdir(exist_ok=True)
    return config


def write_file(config: Config, state: bytes = PAIR.alice.committed) -> Path:
    path = config.paths.channels_backup
    path.write_bytes(seal(saved(state), backup_key(IDENTITY)))
    return path


def make_database(path: Path) -> None:
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()


def test_a_copy_in_the_place_of_the_database_itself_is_refused(tmp_path: Path) -> None:
    """The daemon would go on writing to a file that no start finds again."""
    config = settings(tmp_path)
    make_database(config.paths.database)
    before = config.paths.database.stat().st_ino
    (link := tmp_path / "link").symlink_to(config.paths.directory)
    for target in (config.paths.database, link / config.paths.database.name):
        with pytest.raises(BackupError, match="is the database itself"):
            backup.back_up(config, target)
    assert config.paths.database.stat().st_ino == before
    with pytest.raises(BackupError, match="is a backup of channels"):
        backup.back_up(config, write_file(config))
    with pytest.raises(BackupError, match="cannot be copied"):
        backup.back_up(config, config.paths.directory)
    with pytest.raises(BackupError, match="URL cannot be used"):
        backup.is_missing(settings(tmp_path, database="nonsense"))


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_what_is_left_of_another_database_does_not_get_into_the_new_one(tmp_path: Path, suffix: str) -> None:
    config = settings(tmp_path)
    path = write_file(config)
    left = config.paths.database.with_name(config.paths.database.name + suffix)
    left.touch()
    with pytest.raises(BackupError, match="is left of another database"):
        backup.restore(config, path, SEED)
    left.unlink()
    assert backup.restore(config, path, SEED).channels == 1


def test_a_channel_from_the_file_waits_for_its_peer(tmp_path: Path) -> None:
    config = settings(tmp_path)
    funding = Tx(2, (TxIn(OutPoint(b"\7" * 32, 1)),), (TxOut(1_000_000, b"\0"),), 0)
    fresh = replace(PAIR.alice.funded, funding_tx=funding.serialize())
    backup.restore(config, write_file(config, machine.encode_state(fresh)), SEED)  # type: ignore[arg-type]
    watches = Watches()
    with make_engine(f"sqlite:///{config.paths.database}").connect() as connection:
        (stored,) = rows.load_channels(connection, closed=False)
        watches.load(connection)
    state = machine.decode_state(stored.state)
    assert isinstance(state, WaitingForRemoteClose)
    assert state.is_from_backup
    assert stored.phase == "waiting_for_remote_close"
    assert state.params == PAIR.alice.funded.params
    # A funding transaction that is in no block stays out of it: the peer may have forgotten the channel. That its
    # inputs are spent by another is seen.
    assert state.funding_tx == b""
    watch = watches.get(5)
    assert watch is not None
    assert watch.inputs == funding.spends()


def test_a_channel_that_was_closing_goes_on(tmp_path: Path) -> None:
    config = settings(tmp_path)
    closing = Closing(
        params=PAIR.alice.funded.params,
        commitments=PAIR.alice.commitments,
        kind="mutual",
        closing_tx=b"",
        reason="closed together",
    )
    backup.restore(config, write_file(config, machine.encode_state(closing)), SEED)
    with make_engine(f"sqlite:///{config.paths.database}").connect() as connection:
        (stored,) = rows.load_channels(connection, closed=False)
    assert isinstance(machine.decode_state(stored.state), Closing)


def test_a_state_of_a_later_version_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(BackupError, match=r"a channel state of version 63, 1 expected.*Use the one that wrote it"):
        backup.restore(config, write_file(config, b"\x63"), SEED)
    assert not config.paths.database.exists()


def start(config: Config, capfd: pytest.CaptureFixture[str], *more: str) -> str:
    """What a start that is refused says."""
    assert main(["--network", "regtest", "--datadir", str(config.paths.root), *more]) == 1
    return capfd.readouterr().err


def test_no_new_seed_is_made_beside_a_nodes_backup(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path)
    write_file(config)
    assert "there is no seed, but" in start(config, capfd)
    assert not config.paths.seed.exists()


def test_a_database_without_its_seed_is_not_given_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path)
    path = write_file(config)
    backup.restore(config, path, SEED)
    path.unlink()
    assert "give it with --restore-from and the words" in start(config, capfd)
    config.paths.database.rename(away := tmp_path / "away.sqlite")
    monkeypatch.setenv("CHANNELD_SEED_WORDS", " ".join(SEED.words))
    assert main(["--network", "regtest", "--datadir", str(tmp_path), "--restore-from", str(away)]) == 0
    assert "with 1 open channel" in capfd.readouterr().out
    assert config.paths.restored.exists()


def test_words_alone_are_refused_before_they_are_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seed there, the next start without the words would not look for old coins."""
    config = settings(tmp_path)
    path = write_file(config)
    monkeypatch.setenv("CHANNELD_SEED_WORDS", " ".join(SEED.words))
    assert f"--restore-from {path}" in start(config, capfd)
    assert not config.paths.seed.exists()
    monkeypatch.setenv("CHANNELD_SEED_PASSPHRASE", "wrong")
    assert "their passphrase" in start(config, capfd, "--restore-from", str(path))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_database_elsewhere_is_not_replaced_by_a_new_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    elsewhere = tmp_path / "disk.sqlite"
    config = settings(tmp_path, database=f"sqlite:///{elsewhere}")
    write_file(config)
    if is_there:
        make_database(elsewhere)  # as an empty one of PostgreSQL
    monkeypatch.setenv("CHANNELD_SEED_WORDS", " ".join(SEED.words))
    told = start(config, capfd, "--database", f"sqlite:///{elsewhere}", "--listen", "", "--rpclisten", "127.0.0.1:0")
    assert ("the database is empty" if is_there else f"{elsewhere} is missing") in told
    assert "has 1 of its channels" in told


def test_words_of_another_seed_than_the_file_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path)
    path = write_file(config)
    monkeypatch.setenv("CHANNELD_SEED_WORDS", " ".join(SEED.words))
    assert main(["--network", "regtest", "--datadir", str(tmp_path), "--restore-from", str(path)]) == 0
    config.paths.database.unlink()
    monkeypatch.setenv("CHANNELD_SEED_WORDS", "zoo " * 11 + "wrong")
    assert "is another one than the words" in start(config, capfd, "--restore-from", str(path))


def test_postgresql_is_told_to_be_left_out(tmp_path: Path) -> None:
    config = settings(tmp_path, database="postgresql://user@host/name")
    path = write_file(config)
    with pytest.raises(BackupError, match="leave --database out"):
        backup.restore(config, path, SEED)
    assert not backup.is_missing(config)
    backup_of_none = replace(saved(b""), channels=())
    path.write_bytes(seal(backup_of_none, backup_key(IDENTITY)))
    assert backup.check_not_lost(config, SEED) == 7, "the seed is not new: older coins are looked for"
