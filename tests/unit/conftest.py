"""Fixtures of the tests of `channelctl`; a file may have its own under the same names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli_support import Channelctl, Daemon, started_daemon


@pytest.fixture(scope="module")
def _module_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with started_daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def daemon(_module_daemon: Daemon) -> Daemon:
    """A daemon whose node knows nothing yet."""
    _module_daemon.renew()
    return _module_daemon


@pytest.fixture
def channelctl(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> Channelctl:
    return Channelctl(daemon.paths, capsys.readouterr)
